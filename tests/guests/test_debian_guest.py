"""The guest `debian`, where it was built: ``propolis setup debian``."""

from __future__ import annotations

import os
import time

import pytest
from debian_guest import needs_debian

from pytest_propolis import VmFactory
from pytest_propolis.settings import ChannelKind

pytestmark = needs_debian


async def test_debian_boots_runs_commands_and_reboots(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start("debian", guest="debian", boot="cold")
    assert vm.boot_kind == "cold"
    assert await vm.run(". /etc/os-release; echo $VERSION_CODENAME") == "bookworm"
    assert await vm.run("systemctl is-system-running --wait", check=False) == "running"
    assert await vm.run("findmnt -no FSTYPE /") == "ext4"
    machine = await vm.run("cat /etc/machine-id")
    assert len(machine) == 32
    await vm.run("touch /root/there")
    await vm.graceful_reboot()
    assert await vm.run("ls /root; cat /etc/machine-id") == f"there\n{machine}"


async def test_debian_forks_have_identities_of_their_own(vm_factory: VmFactory) -> None:
    vms = [await vm_factory.start(name, guest="debian") for name in ("one", "two")]
    assert [vm.boot_kind for vm in vms] == ["warm", "warm"]
    assert [await vm.run("hostname") for vm in vms] == ["one", "two"]
    for command in ("cat /etc/machine-id", "cat /proc/sys/kernel/random/uuid", "echo $RANDOM$RANDOM"):
        answers = {await vm.run(command) for vm in vms}
        assert len(answers) == len(vms), answers
    before = int(time.time())
    assert before - 1 <= int(await vms[1].run("date +%s")) <= time.time() + 1
    assert await vms[1].run("systemctl is-system-running") == "running"
    assert await vms[1].run("systemctl list-jobs --no-legend") == ""


async def test_what_a_debian_fork_writes_no_other_sees_and_its_file_system_is_clean(vm_factory: VmFactory) -> None:
    first = await vm_factory.start("first", guest="debian")
    await first.run("echo mine > /root/file; sync")
    second = await vm_factory.start("second", guest="debian")
    assert await second.run("ls /root") == ""
    await second.run("echo s > /proc/sysrq-trigger; echo u > /proc/sysrq-trigger; mount -o remount,ro / || true")
    assert (await second.run_result("e2fsck -fn /dev/vda")).status == 0


@pytest.mark.parametrize(
    ("channel", "stdout"),
    [pytest.param("auto", "pipe:", marks=pytest.mark.requires(server="engine")), ("console", "/dev/ttyS0")],
)
async def test_commands_and_files_of_debian_go_over_ports_unless_the_console_is_requested(
    vm_factory: VmFactory, channel: ChannelKind, stdout: str
) -> None:
    vm = await vm_factory.start("debian", guest="debian", channel=channel)
    assert vm.has_ports == (channel == "auto")
    assert (await vm.run("readlink /proc/self/fd/1")).startswith(stdout)
    await vm.run("cd /tmp; greeting=hello")
    assert await vm.run('echo "$greeting from $PWD"') == "hello from /tmp"
    content = os.urandom(50_000)
    await vm.put(content, "/root/file")
    assert await vm.get_bytes("/root/file") == content
    await vm.graceful_reboot()
    assert (await vm.run("readlink /proc/self/fd/1")).startswith(stdout)
    assert await vm.get_bytes("/root/file") == content
