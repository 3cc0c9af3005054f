"""Kills while VMs are forked, migrate, have disks or files copied, or change states: nothing of the run is left."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest
from live_run import LiveRun, live_run

ENDED_TIMEOUT_S = 90

# They go round and round: a kill at an arbitrary time hits any step.
CHANGES_STATES = """
import os
from conftest import reached
from pytest_propolis import InstanceState
from pytest_propolis.propolis_api import (
    FromSpec, InstanceEnsureRequest, InstanceStateRequested, SpecInit,
)

async def test_victim(vm_factory, slow_to_leave):
    vm = await vm_factory.start("victim", guest="micro", memory_mib=128)
    for n in range(600):
        if n == 2:
            reached("resetting")
            reached("changing states")
        await vm.reset()
        if os.environ["HAZARD_PHASE"] == "resetting":
            await vm.wait_for_state(InstanceState.RUNNING)
            continue
        await vm.stop()
        request = InstanceEnsureRequest(properties=vm.properties, init=SpecInit(FromSpec(spec=vm.spec)))
        await vm.client.instance_ensure(request)
        await vm.client.instance_state_put(InstanceStateRequested.RUN)
        await vm.wait_for_state(InstanceState.RUNNING)
"""

MIGRATES = """
from conftest import reached
from pytest_propolis import InstanceState

async def test_victim(vm_factory, slow_to_leave):
    vm = await vm_factory.start("victim", guest="micro", memory_mib=128)
    assert await vm.run("echo up") == "up"
    reached("about to migrate")
    for n in range(600):
        target = await vm_factory.successor(vm)
        if n == 2:
            reached("migrating")
        await target.migrate_from(vm)
        if n == 2:
            reached("migrated")
        await vm.wait_for_state(InstanceState.DESTROYED)
        await vm.aclose()
        vm = target
"""

# Where a copy is under way, its relay has a socket. The guest writes meanwhile, so that it lasts.
COPIES_DISKS = """
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
            reached("copying disks")
        await target.migrate_from(vm)
        await vm.wait_for_state(InstanceState.DESTROYED)
        await vm.aclose()
        vm = target
"""

FORKS = """
from conftest import reached
from pytest_propolis import DataDisk

async def test_victim(vm_factory, slow_to_leave):
    for n in range(600):
        if n == 2:
            reached("forking")
        disk = DataDisk(name="data", contents=bytes(512))
        vm = await vm_factory.start(f"victim{n}", guest="micro", memory_mib=128, disks=(disk,) if n % 2 else ())
        assert vm.boot_kind == "warm"
        assert await vm.run("hostname") == f"victim{n}"
        await vm.aclose()
"""

# The shell's port is open, with a command under way; so are one for the file, and two for the program, whose output
# waits.
TRANSFERS = """
import os
from conftest import reached

async def test_victim(vm_factory, slow_to_leave, tmp_path):
    vm = await vm_factory.start("victim", guest="micro", memory_mib=192, channel="port")
    content = os.urandom(16 << 20)
    (tmp_path / "content").write_bytes(content)

    def see(phase):
        return lambda progress: n == 1 and progress.done_bytes > 4 << 20 and reached(phase)

    async with vm.process("yes"):
        for n in range(600):
            await vm.put(tmp_path / "content", "/tmp/file", on_progress=see("putting a file"))
            await vm.get("/tmp/file", tmp_path / "back", on_progress=see("getting a file"))
"""

VICTIMS = {
    "forking": FORKS,
    "resetting": CHANGES_STATES,
    "changing states": CHANGES_STATES,
    "about to migrate": MIGRATES,
    "migrating": MIGRATES,
    "migrated": MIGRATES,
    "copying disks": COPIES_DISKS,
    "putting a file": TRANSFERS,
    "getting a file": TRANSFERS,
}
"""The test that gets to a phase."""

PHASES = [pytest.param(phase, marks=pytest.mark.slow) if phase == "copying disks" else phase for phase in VICTIMS]


@contextlib.contextmanager
def run_in(phase: str) -> Iterator[LiveRun]:
    """Start a run, and wait until it is in this phase."""
    with live_run(phase, test=VICTIMS[phase]) as run:
        if phase == "copying disks":
            run.wait_until(lambda: any(path.endswith("copy0.sock") for path in run.files()))
        yield run


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_pytest_is_hit(phase: str, number: signal.Signals) -> None:
    with run_in(phase) as run:
        run.hit("controller", number)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


@pytest.mark.parametrize("phase", PHASES)
def test_a_qemu_is_killed(phase: str) -> None:
    """The guest may run in this QEMU or not: the test fails, or completes."""
    with run_in(phase) as run:
        run.wait_until(lambda: _is_killed(run))
        run.hit("controller", signal.SIGINT)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


def _is_killed(run: LiveRun) -> bool:
    with contextlib.suppress(StopIteration, ProcessLookupError):  # there is no QEMU just now
        run.hit("qemu", signal.SIGKILL)
        return True
    return False


@pytest.mark.parametrize("phase", PHASES)
def test_the_agent_is_killed_and_takes_all_qemus_along(phase: str) -> None:
    with run_in(phase) as run:
        run.hit("agent", signal.SIGKILL)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED, run.output
        # The kernel kills them with the agent; one with much memory takes a moment to be gone.
        run.wait_until(lambda: not [line for line in run.processes().values() if "qemu" in line])
        run.collect_garbage()
        run.wait_until_clean()
