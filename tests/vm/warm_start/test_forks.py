"""Forks of a template: independent VMs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_propolis.agent_api.templates import BOUNDARY
from pytest_propolis.errors import ApiError, VmStateError
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.requires(server="engine")

MICRO: dict[str, Any] = {"guest": "micro", "cpus": 1, "memory_mib": 256}


async def fork(vm_factory: VmFactory, name: str, **changes: Any) -> TestVm:
    vm = await vm_factory.start(name, **{**MICRO, **changes})
    assert vm.boot_kind == "warm"
    return vm


async def kill_qemu(vm_factory: VmFactory, name: str) -> None:
    (listed,) = [vm for vm in await vm_factory.agent.list_vms() if (vm.name, vm.group) == (name, vm_factory.group)]
    assert listed.pid
    os.kill(listed.pid, signal.SIGKILL)


def processes_of(vm: TestVm) -> list[Path]:
    """Those whose command line has the VM's id, as its QEMU's has."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if vm.id.encode() in (process / "cmdline").read_bytes():
                found.append(process)
    return found


async def test_two_forks_share_no_random_stream(vm_factory: VmFactory) -> None:
    vms = [await fork(vm_factory, name) for name in ("one", "two", "three")]
    for command in ("head -c 32 /dev/urandom | od -An -tx1", "cat /proc/sys/kernel/random/uuid", "echo $RANDOM$RANDOM"):
        answers = [await vm.run(command) for vm in vms]
        assert len(set(answers)) == len(vms), answers


@pytest.mark.parametrize(("guest", "events"), [("alpine", "1"), ("micro", "0")])
async def test_the_kernel_of_a_distribution_knows_before_its_first_command_that_it_is_a_copy(
    vm_factory: VmFactory, guest: str, events: str
) -> None:
    """No program of the micro guest runs before that."""
    vm = await fork(vm_factory, "vm", guest=guest, cpus=2, memory_mib=512)
    assert await vm.run("dmesg | grep -c 'reseeded due to virtual machine fork' || :") == events


async def test_a_fork_has_its_own_name_and_the_time_of_the_host(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "own-name")
    assert await vm.run("hostname") == "own-name"
    before = int(time.time())
    told = int(await vm.run("date +%s"))
    assert before - 1 <= told <= time.time() + 1


async def test_an_identity_may_arrive_in_pieces(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm")
    command = vm.guest.identity_command(name="renamed")
    before, record, rest = command.split("'")
    record = record.removesuffix("%s\\n")
    half = len(record) - 24  # amid the letters at its end
    pieces = f"{before.replace('printf', 'pieces')} {rest}"
    await vm.run(f"pieces() {{ printf '{record[:half]}'; /bin/busybox true; printf '{record[half:]}%s\\n' $1; }}")
    await vm.run(f"for n in 1 2 3; do {vm.guest.await_identity_command()} && {pieces} || exit; done")
    assert await vm.run("hostname") == "renamed"


async def test_of_what_woke_a_fork_nothing_runs_in_it(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm")
    assert await vm.run("grep -l propolis-wake /proc/[0-9]*/cmdline || true") == ""


async def test_what_a_fork_keeps_in_memory_no_other_sees_not_even_if_it_was_killed(vm_factory: VmFactory) -> None:
    first = await fork(vm_factory, "first")
    await first.run("leaf=new; head -c 64M /dev/zero | tr '\\0' x > /run/written")
    await kill_qemu(vm_factory, "first")
    with pytest.raises(VmStateError):
        await first.wait_for_state(InstanceState.DESTROYED, timeout_s=30)
    for name in ("second", "third"):
        vm = await fork(vm_factory, name)
        assert await vm.run("ls /run; echo leaf=$leaf") == "leaf="


async def test_what_a_fork_writes_to_its_disks_no_other_sees_and_file_systems_are_clean(vm_factory: VmFactory) -> None:
    first = await fork(vm_factory, "first", guest="alpine", cpus=2, memory_mib=512)
    await first.run("echo mine > /root/file; sync; (while :; do echo x >> /root/growing; sync; done) >/dev/null 2>&1 &")
    async with first.expect_exit():
        await kill_qemu(vm_factory, "first")
    second = await fork(vm_factory, "second", guest="alpine", cpus=2, memory_mib=512)
    assert await second.run("ls -A /root | grep -v '^\\.' || true") == ""
    await second.run("echo s > /proc/sysrq-trigger; echo u > /proc/sysrq-trigger; mount -o remount,ro / || true")
    assert (await second.run_result("e2fsck -fn /dev/vda")).status == 0


async def test_forks_are_made_at_the_same_time(vm_factory: VmFactory) -> None:
    vms = await asyncio.gather(*(fork(vm_factory, f"vm{number}") for number in range(4)))
    assert await asyncio.gather(*(vm.run("hostname") for vm in vms)) == ["vm0", "vm1", "vm2", "vm3"]


async def test_of_a_start_that_is_cancelled_at_any_time_no_vm_is_left_that_nobody_knows(vm_factory: VmFactory) -> None:
    await fork(vm_factory, "first")
    for number in range(40):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005 * number):
                await vm_factory.start(f"vm{number}", **MICRO)
    async with asyncio.timeout(60):
        while await _names(vm_factory) - {vm.name for vm in vm_factory.vms}:
            await asyncio.sleep(0.02)


async def _names(vm_factory: VmFactory) -> set[str]:
    """The VMs of this test: the agent has those of others, too."""
    return {vm.name for vm in await vm_factory.agent.list_vms() if vm.group == vm_factory.group}


async def test_the_console_of_a_fork_begins_with_the_boot_of_its_template(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm")
    await vm.run("echo 'of its own'")
    boot, boundary, own = vm.log_path.read_text().partition(BOUNDARY)
    assert boundary
    assert "micro-is-up" in boot
    assert "of its own" in own
    assert vm.boot_log.strip() == boot.strip()


async def test_a_fork_says_how_long_its_way_took(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm")
    await vm.run("true")
    assert {"fork", "identity", "first command"} <= vm.phases.took_s.keys()


async def test_a_fork_that_reboots_boots(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm")
    await vm.run("touch /run/marker")
    await vm.graceful_reboot()
    assert (await vm.run_result("ls /run/marker")).status != 0


async def test_a_fork_that_was_stopped_boots(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm")
    await vm.run("touch /run/marker")
    await vm.stop()
    await vm.boot()
    assert vm.boot_kind == "cold"
    assert (await vm.run_result("ls /run/marker")).status != 0


async def test_a_fork_goes_through_the_states_of_any_vm(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create("vm", boot="warm", **MICRO)
    await vm.ensure()
    assert await vm.get_state() is InstanceState.CREATING
    await vm.run_instance()
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.wait_to_boot()
    assert vm.boot_kind == "warm"
    await vm.stop()


async def test_input_that_comes_before_a_fork_runs_waits_for_it(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create("vm", boot="warm", **MICRO)
    await vm.ensure()
    typed_identity = asyncio.create_task(vm.wait_to_boot())
    for _ in range(3):
        assert await vm.get_state() is InstanceState.CREATING
    await vm.run_instance()
    await typed_identity
    assert await vm.run("echo up") == "up"


async def test_a_spec_that_is_not_the_templates_answers_400(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create("vm", boot="warm", **MICRO)
    board = msgspec.structs.replace(vm.spec.board, cpus=2)
    vm.spec = msgspec.structs.replace(vm.spec, board=board)
    with pytest.raises(ApiError, match="template") as caught:
        await vm.ensure()
    assert caught.value.status == 400


async def test_a_fork_has_a_disk_of_its_own_name(vm_factory: VmFactory) -> None:
    for name in ("one", "other"):
        vm = await vm_factory.start(name, disks=(DataDisk(name=f"{name}-disk", size_mib=8),), **MICRO)
        assert vm.boot_kind == "warm"
        assert f"{name}-disk-backend" in vm.spec.components


async def test_a_fork_that_never_ran_leaves_nothing(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create("vm", boot="warm", disks=(DataDisk(name="data", size_mib=8),), **MICRO)
    assert processes_of(vm)
    await vm_factory.aclose()
    assert not processes_of(vm)
    assert not Path(vm.spec.components["data-backend"].component.path).exists()  # type: ignore[union-attr]
    assert not [listed for listed in await vm_factory.agent.list_vms() if listed.group == vm_factory.group]


@pytest.mark.parametrize("changes", [{"boot": "cold"}, {"display": True}], ids=["asked for", "display"])
async def test_what_cannot_be_forked_boots(vm_factory: VmFactory, changes: dict[str, Any]) -> None:
    vm = await vm_factory.start("vm", **MICRO, **changes)
    assert vm.boot_kind == "cold"


@pytest.mark.cold_boot
async def test_the_marker_asks_for_a_boot(vm_factory: VmFactory) -> None:
    assert (await vm_factory.start("vm", **MICRO)).boot_kind == "cold"


async def test_an_empty_data_disk_is_part_of_the_kind(vm_factory: VmFactory) -> None:
    disks = (DataDisk(name="data", size_mib=8),)
    vm = await fork(vm_factory, "vm", disks=disks)
    assert await vm.run("cat /sys/bus/pci/devices/0000:00:04.0/vendor") == "0x1af4"
