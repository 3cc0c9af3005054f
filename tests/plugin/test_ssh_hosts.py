"""pytest with an inventory of SSH hosts, as a user runs it, on real guests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SHARED_STORE, SshRig, can_make_rigs, inventory_of, ssh_rig

from pytest_propolis.storage.store import default_artifact_dir

STORE = default_artifact_dir()  # found before pytester gives each test a home directory of its own


@pytest.fixture
def rig() -> Iterator[SshRig]:
    if not can_make_rigs():
        pytest.skip("needs root, or the capabilities of a user namespace, and sshd, ip, nsenter, setpriv, unshare")
    with ssh_rig("h1", "h2", mounts=SHARED_STORE.format(store=STORE)) as made:
        yield made


@pytest.fixture
def hosts(rig: SshRig, inner: InnerRun) -> Path:
    path = inner.pytester.path / "hosts.toml"
    path.write_text(inventory_of(rig))
    return path


def test_a_guest_on_an_ssh_host_runs_commands_and_leaves_nothing(inner: InnerRun, rig: SshRig, hosts: Path) -> None:
    inner.write(
        test_it="""
        async def test_it(test_vm):
            assert await test_vm.run("uname") == "Linux"
            assert await test_vm.host.run("hostname") == test_vm.host.name == "h1"
        """
    )
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=1)
    assert {name: host.processes() for name, host in rig.hosts.items()} == {"h1": {}, "h2": {}}
    assert rig.hosts["h1"].run("ls", "/run/propolis") == ""
