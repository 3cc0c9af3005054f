"""The guest `debian`, where it was built: ``propolis setup debian``."""

from __future__ import annotations

import pytest

from pytest_propolis import VmFactory
from pytest_propolis.storage.debian import DebianBuild
from pytest_propolis.storage.store import default_artifact_dir

BUILD = DebianBuild()
pytestmark = pytest.mark.skipif(
    not (default_artifact_dir() / "derived" / BUILD.key / BUILD.disk).exists(),
    reason="the guest debian is not built: `propolis setup debian` does it",
)


async def test_debian_boots_runs_commands_and_reboots(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start("debian", guest="debian")
    assert await vm.run(". /etc/os-release; echo $VERSION_CODENAME") == "bookworm"
    assert await vm.run("systemctl is-system-running --wait", check=False) == "running"
    assert await vm.run("findmnt -no FSTYPE /") == "ext4"
    machine = await vm.run("cat /etc/machine-id")
    assert len(machine) == 32
    await vm.run("touch /root/there")
    await vm.graceful_reboot()
    assert await vm.run("ls /root; cat /etc/machine-id") == f"there\n{machine}"
