"""Whatever is killed while a VM migrates: nothing of the run is left."""

from __future__ import annotations

import signal

import pytest
from kills import SIGNALS, a_qemu_is_killed, the_agent_is_killed, the_run_is_hit
from live_run import live_run

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
@SIGNALS
def test_pytest_is_hit(phase: str, number: signal.Signals) -> None:
    with live_run(phase, test=TEST) as run:
        the_run_is_hit(run, number)


@pytest.mark.parametrize("phase", PHASES)
def test_a_qemu_is_killed(phase: str) -> None:
    with live_run(phase, test=TEST) as run:
        a_qemu_is_killed(run)


@pytest.mark.parametrize("phase", PHASES)
def test_the_agent_is_killed_and_takes_both_sides_along(phase: str) -> None:
    with live_run(phase, test=TEST) as run:
        the_agent_is_killed(run)
