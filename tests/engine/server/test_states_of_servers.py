"""States of a VM, by the state monitor: of a server in this process, and of a server program over TCP."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from engine_rig import DEADLINE_S, StateRig, engine_rig, program_state_rig

from pytest_propolis.propolis_api import InstanceState

FAILED, DESTROYED = InstanceState.FAILED, InstanceState.DESTROYED


needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")


@pytest_asyncio.fixture(
    params=[pytest.param(engine_rig, id="engine"), pytest.param(program_state_rig, id="program", marks=needs_qemu)]
)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateRig]:
    async with request.param(tmp_path) as rig:
        yield rig


@pytest_asyncio.fixture
async def running(rig: StateRig) -> StateRig:
    await rig.ensure()
    await rig.put("Run")
    await rig.wait_for(InstanceState.RUNNING)
    return rig


async def test_a_frozen_qemu_holds_up_no_stop(running: StateRig) -> None:
    pid = running.pid
    os.kill(pid, signal.SIGSTOP)
    await running.put("Reboot")
    await running.wait_for(InstanceState.REBOOTING)
    assert (await running.put("Stop")).status_code == 204
    # Creating, Starting, Running, Rebooting, Stopping, Stopped, Destroyed.
    assert await running.wait_for(DESTROYED) == 7
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_guest_that_resets_itself_is_rebooting_and_runs_again(running: StateRig) -> None:
    for gen in (5, 7):
        await running.type("reset")
        assert await running.wait_for(InstanceState.RUNNING, gen=gen) == gen


async def test_a_guest_that_shuts_itself_down_ends_its_vm(running: StateRig) -> None:
    await running.type("shutdown")
    # Creating, Starting, Running, Stopping, Stopped, Destroyed.
    assert await running.wait_for(DESTROYED) == 6


async def test_a_guest_that_panics_runs_on(running: StateRig) -> None:
    await running.type("panic")
    await running.type("reset")
    assert await running.wait_for(InstanceState.RUNNING, gen=5) == 5


async def test_a_guest_that_resets_and_then_shuts_down_is_heard_in_that_order(running: StateRig) -> None:
    await running.type("reset", "shutdown")
    # Creating, Starting, Running, Rebooting, Running, Stopping, Stopped, Destroyed.
    assert await running.wait_for(DESTROYED) == 8


async def test_a_guests_shutdown_comes_before_what_was_asked_for(running: StateRig) -> None:
    os.kill(running.pid, signal.SIGSTOP)
    try:
        await running.put("Reboot")
        await running.wait_for(InstanceState.REBOOTING)
        await running.type("shutdown")
        replacement = asyncio.create_task(running.replace("here", 2))
        await running.gen()  # when this is answered, the replacement has been queued
    finally:
        os.kill(running.pid, signal.SIGCONT)
    async with asyncio.timeout(DEADLINE_S):
        assert (await replacement).status_code == 410
    # Creating, Starting, Running, Rebooting, Running, Stopping, Stopped, Destroyed.
    assert await running.wait_for(DESTROYED) == 8


async def test_a_reset_from_outside_and_the_guests_own_follow_each_other(running: StateRig) -> None:
    await running.type("reset")
    assert await running.wait_for(InstanceState.RUNNING, gen=5) == 5
    await running.put("Reboot")
    assert await running.wait_for(InstanceState.RUNNING, gen=7) == 7


async def test_a_qemu_that_ends_by_itself_is_a_failed_vm(running: StateRig) -> None:
    await running.type("exit")
    assert await running.wait_for(FAILED) == 4


async def test_a_server_is_used_again_whatever_became_of_its_vm(rig: StateRig) -> None:
    ends = {"shutdown": DESTROYED, "exit": FAILED}
    for end, state in ends.items():
        assert (await rig.ensure()).status_code == 201
        assert await rig.gen() == 1
        history = await rig.client.get("/instance/serial/history", params={"from_start": 0})
        assert history.json() == {"data": [], "last_byte_offset": 0}
        await rig.put("Run")
        await rig.type(end)
        await rig.wait_for(state)


async def test_an_observer_of_the_last_vm_is_told_that_it_is_gone(rig: StateRig) -> None:
    await rig.ensure()
    observer: asyncio.Task[httpx.Response] = asyncio.create_task(rig.monitor(100))
    await rig.put("Stop")
    await rig.wait_for(DESTROYED)
    async with asyncio.timeout(DEADLINE_S):
        answer = await observer
    assert (answer.status_code, answer.json()["error_code"]) == (410, "NoInstance")


async def test_a_guest_s_reset_is_carried_out_after_the_host_s_clock_was_set_back(running: StateRig) -> None:
    await running.put("Reboot")
    assert await running.wait_for(InstanceState.RUNNING, gen=5) == 5
    await running.type("clock back")
    await running.type("reset")
    assert await running.wait_for(InstanceState.RUNNING, gen=7) == 7
