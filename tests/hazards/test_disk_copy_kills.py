"""Whatever is killed while the disks of a VM are copied to another server: nothing of the run is left."""

from __future__ import annotations

import signal

from kills import SIGNALS, a_qemu_is_killed, the_agent_is_killed, the_run_is_hit
from live_run import LiveRun, live_run

# Where a copy is under way, its relay has a socket. The guest writes meanwhile, so that it lasts.
TEST = """
from conftest import reached
from pytest_propolis import DataDisk, InstanceState

async def test_victim(vm_factory, slow_to_leave):
    disk = DataDisk(name="data", size_mib=32)
    vm = await vm_factory.start("victim", guest="micro", memory_mib=128, cpus=1, boot="cold", disks=(disk,))
    await vm.run("modprobe virtio_blk; dd if=/dev/zero of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null")
    await vm.run("(while :; do dd if=/dev/zero of=/dev/vda bs=64k count=100 conv=fsync; done) > /dev/null 2>&1 &")
    for n in range(600):
        target = await vm_factory.successor(vm, copy_disks=True)
        if n == 1:
            reached("migrating")
        await target.migrate_from(vm)
        await vm.wait_for_state(InstanceState.DESTROYED)
        await vm.aclose()
        vm = target
"""


def _wait_for_a_copy(run: LiveRun) -> None:
    run.wait_until(lambda: any(path.endswith("copy0.sock") for path in run.files()))


@SIGNALS
def test_pytest_is_hit(number: signal.Signals) -> None:
    with live_run("migrating", test=TEST) as run:
        _wait_for_a_copy(run)
        the_run_is_hit(run, number)


def test_a_qemu_is_killed() -> None:
    with live_run("migrating", test=TEST) as run:
        _wait_for_a_copy(run)
        a_qemu_is_killed(run)


def test_the_agent_is_killed_and_its_copies_are_collected() -> None:
    with live_run("migrating", test=TEST) as run:
        _wait_for_a_copy(run)
        the_agent_is_killed(run)
