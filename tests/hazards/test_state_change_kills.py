"""Whatever is killed while a VM is reset, or goes through its states: nothing of the run is left."""

from __future__ import annotations

import signal

import pytest
from kills import SIGNALS, a_qemu_is_killed, the_agent_is_killed, the_run_is_hit
from live_run import live_run

PHASES = ("resetting", "changing states")

# Round and round: a kill at an arbitrary time hits any step.
TEST = """
import os
from conftest import reached
from pytest_propolis import InstanceState
from pytest_propolis.propolis_api import (
    FromSpec, InstanceEnsureRequest, InstanceStateRequested, SpecInit,
)

async def test_resets(vm_factory, slow_to_leave):
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
def test_the_agent_is_killed(phase: str) -> None:
    with live_run(phase, test=TEST) as run:
        the_agent_is_killed(run)
