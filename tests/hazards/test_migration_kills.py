"""Whatever is killed while a VM migrates: nothing of the run is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from live_run import live_run

ENDED_TIMEOUT_S = 90
PHASES = ("about to migrate", "migrating", "migrated")

# The guest goes round and round: a kill at an arbitrary time hits any step of a migration.
TEST = """
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


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_pytest_is_hit(phase: str, number: signal.Signals) -> None:
    with live_run(phase, test=TEST) as run:
        run.hit("controller", number)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


@pytest.mark.parametrize("phase", PHASES)
def test_a_qemu_is_killed(phase: str) -> None:
    """The guest is in one of two, and nobody knows which is hit: the test fails, or its guest goes on until the end."""
    with live_run(phase, test=TEST) as run:
        run.hit("qemu", signal.SIGKILL)
        run.hit("controller", signal.SIGINT)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


@pytest.mark.parametrize("phase", PHASES)
def test_the_agent_is_killed_and_takes_both_sides_along(phase: str) -> None:
    with live_run(phase, test=TEST) as run:
        run.hit("agent", signal.SIGKILL)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED, run.output
        assert not [line for line in run.processes().values() if "qemu" in line]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(run.files()[0]).partition("/propolis/")[0]}
        gc = [sys.executable, "-c", "from pytest_propolis.cli import main; main()", "gc"]
        subprocess.run(gc, env=environment, capture_output=True, text=True, check=True, timeout=ENDED_TIMEOUT_S)
        run.wait_until_clean()
