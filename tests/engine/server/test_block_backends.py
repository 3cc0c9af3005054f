"""A VM whose disk is on a backend that blocks: it can always be stopped, and corrected while it starts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from engine_rig import BACKEND, DEADLINE_S, EngineRig, engine_rig, vcr_json

from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.request_queue import DenyReason
from pytest_propolis.propolis_api import InstanceState


@pytest_asyncio.fixture(params=["fake", "real"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineRig]:
    options: dict[str, Any] = {"qemu": await find_qemu(None)} if request.param == "real" else {}
    async with engine_rig(tmp_path, **options) as rig:
        yield rig


@pytest_asyncio.fixture
async def fake(tmp_path: Path) -> AsyncIterator[EngineRig]:
    async with engine_rig(tmp_path) as rig:
        yield rig


@pytest.fixture
async def blocked(rig: EngineRig) -> EngineRig:
    """Return a VM whose start is blocked."""
    return await block(rig)


async def block(rig: EngineRig) -> EngineRig:
    assert (await rig.ensure(address="black hole")).status_code == 201
    assert (await rig.put("Run")).status_code == 204
    assert await rig.wait_for(InstanceState.STARTING) == 2
    return rig


async def run(rig: EngineRig) -> EngineRig:
    assert (await rig.ensure(address="here")).status_code == 201
    assert (await rig.put("Run")).status_code == 204
    assert await rig.wait_for(InstanceState.RUNNING) == 3
    return rig


def refusal(answer: httpx.Response) -> tuple[int, str | None, str]:
    body = answer.json()
    return answer.status_code, body.get("error_code"), body["message"]


async def test_a_vm_runs_when_its_backend_is_up(rig: EngineRig) -> None:
    await run(rig)
    assert rig.backend.events == ["start", "started"]


async def test_a_stop_ends_a_start_that_is_blocked(blocked: EngineRig) -> None:
    assert (await blocked.put("Stop")).status_code == 204
    # Starting was 2. No Stopping: what has not started is not brought down.
    assert await blocked.wait_for(InstanceState.DESTROYED) == 4
    assert blocked.backend.events == ["start", "cancelled", "closing", "closed"]


async def test_a_blocked_start_goes_on_with_the_volume_that_replaces_the_first(blocked: EngineRig) -> None:
    answer = await blocked.replace("here", 2)
    assert (answer.status_code, answer.json()) == (200, "started")
    assert await blocked.wait_for(InstanceState.RUNNING) == 3
    assert blocked.backend.events == ["start", "started"]  # it was not started again
    spec = (await blocked.client.get("/instance/spec")).json()["spec"]["value"]
    assert spec["components"][BACKEND]["component"]["request_json"] == vcr_json("here", 2)
    answer = await blocked.replace("here", 3)
    assert (answer.status_code, answer.json()) == (200, "vcr_matches")
    spec = (await blocked.client.get("/instance/spec")).json()["spec"]["value"]
    assert spec["components"][BACKEND]["component"]["request_json"] == vcr_json("here", 3)


async def test_what_a_blocked_start_answers_to_the_other_requests(fake: EngineRig) -> None:
    await block(fake)
    assert (await fake.put("Run")).status_code == 204
    assert refusal(await fake.put("Reboot")) == (
        403,
        "instance state change not allowed: Instance is currently starting",
        "Forbidden",
    )
    assert (await fake.client.get("/instance/spec")).status_code == 200
    assert (await fake.ensure()).status_code == 409
    assert await fake.gen() == 2


async def test_a_start_that_can_never_succeed_fails_the_vm(fake: EngineRig) -> None:
    await fake.ensure(address="broken")
    await fake.put("Run")
    assert await fake.wait_for(InstanceState.FAILED) == 3
    assert fake.backend.events == ["start", "closing", "closed"]


async def test_a_volume_that_proves_broken_while_it_blocks_fails_the_vm(fake: EngineRig) -> None:
    await block(fake)
    await fake.replace("broken", 2)
    assert await fake.wait_for(InstanceState.FAILED) == 3


async def test_a_qemu_that_ends_while_a_start_is_blocked_fails_the_vm(blocked: EngineRig) -> None:
    assert blocked.server.pid
    os.kill(blocked.server.pid, signal.SIGKILL)
    assert await blocked.wait_for(InstanceState.FAILED) == 3
    assert blocked.backend.events == ["start", "cancelled", "closing", "closed"]


async def test_replacements_are_refused_as_upstream_does(fake: EngineRig) -> None:
    await run(fake)
    no_such = "No crucible backend for id other"
    assert refusal(await fake.replace("here", 2, backend="other")) == (404, no_such, "Not Found")
    api_error = "a lower generation"
    assert refusal(await fake.replace("here", 1)) == (400, api_error, api_error)
    answer = await fake.client.put(f"/instance/disk/{BACKEND}/vcr", json={"vcr_json": "{"})
    status, code, message = refusal(answer)
    assert (status, code) == (400, message)
    assert "not valid JSON" in message
    assert (await fake.client.put(f"/instance/disk/{BACKEND}/vcr", json={})).status_code == 400
    # What is missing never reaches the caller as a result.
    assert (await fake.replace("missing", 2)).status_code == 400
    spec = (await fake.client.get("/instance/spec")).json()["spec"]["value"]
    assert spec["components"][BACKEND]["component"]["request_json"] == vcr_json("here", 1)


async def test_a_replacement_before_the_start_is_served(fake: EngineRig) -> None:
    await fake.ensure(address="black hole")
    answer = await fake.replace("here", 2)
    assert (answer.status_code, answer.json()) == (200, "started")
    await fake.put("Run")
    await fake.wait_for(InstanceState.RUNNING)


async def test_without_a_vm_a_replacement_answers_424(fake: EngineRig) -> None:
    assert (await fake.replace("here", 2)).status_code == 424
    await run(fake)
    await fake.put("Stop")
    await fake.wait_for(InstanceState.DESTROYED)
    assert refusal(await fake.replace("here", 2)) == (424, "NoInstance", "Server not initialized (no instance)")


async def test_a_stop_that_overtakes_a_replacement_ends_both(fake: EngineRig) -> None:
    await run(fake)
    assert fake.server.pid
    os.kill(fake.server.pid, signal.SIGSTOP)  # so that the reboot lasts
    try:
        await fake.put("Reboot")
        await fake.wait_for(InstanceState.REBOOTING)
        replacement = asyncio.create_task(fake.replace("elsewhere", 2))
        await asyncio.sleep(0)
        await fake.put("Stop")
    finally:
        os.kill(fake.server.pid, signal.SIGCONT)
    async with asyncio.timeout(DEADLINE_S):
        assert refusal(await replacement) == (410, "VM destroyed before request could be handled", "Gone")
        await fake.wait_for(InstanceState.DESTROYED)


@pytest.mark.parametrize("start", [block, run])
async def test_a_stop_ends_a_replacement_that_gets_no_answer(fake: EngineRig, start: object) -> None:
    assert callable(start)
    await start(fake)
    replacement = asyncio.create_task(fake.replace("silence", 2))
    async with asyncio.timeout(DEADLINE_S):
        await fake.backend.reached("silent")
        await fake.put("Stop")
        assert (await replacement).status_code == 410
        await fake.wait_for(InstanceState.DESTROYED)


async def test_a_client_that_leaves_does_not_hold_up_the_vm(fake: EngineRig) -> None:
    await block(fake)
    replacement = asyncio.create_task(fake.replace("silence", 2))
    await fake.backend.reached("silent")
    replacement.cancel()
    await fake.put("Stop")
    await fake.wait_for(InstanceState.DESTROYED)


@pytest.mark.parametrize(
    ("address", "end", "last"),
    [("black hole", "Stop", InstanceState.DESTROYED), ("broken", "Run", InstanceState.FAILED)],
)
async def test_the_end_is_told_only_when_everything_is_released(
    fake: EngineRig, address: str, end: str, last: InstanceState
) -> None:
    await fake.ensure(address=address)
    fake.backend.may_close.clear()
    await fake.put(end)
    await fake.backend.reached("closing")
    assert (await fake.put("Run")).status_code == 424
    state = (await fake.client.get("/instance")).json()["instance"]["state"]
    assert state in ("Stopped", "Starting")
    assert (await fake.ensure()).status_code == 409
    fake.backend.may_close.set()
    await fake.wait_for(last)
    assert fake.backend.events[-1] == "closed"
    assert (await fake.ensure()).status_code == 201
    assert await fake.gen() == 1


async def test_a_server_that_is_closed_while_a_start_is_blocked_releases_all(fake: EngineRig) -> None:
    await block(fake)
    await fake.server.close()
    assert fake.backend.events == ["start", "cancelled", "closing", "closed"]


async def test_a_server_that_is_closed_twice_still_releases_all_before_it_says_so(fake: EngineRig) -> None:
    await run(fake)
    fake.backend.may_close.clear()
    first = asyncio.create_task(fake.server.close())
    await fake.backend.reached("closing")
    second = asyncio.create_task(fake.server.close())
    for _ in range(2):  # the second has asked for the end, too
        await fake.client.get("/instance")
    assert await fake.gen() == 3
    assert not first.done()
    assert not second.done()
    fake.backend.may_close.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(first, second)
    assert fake.backend.events[-1] == "closed"
    assert await fake.wait_for(InstanceState.DESTROYED) == 4


async def test_without_a_backend_a_crucible_component_is_refused(tmp_path: Path) -> None:
    async with engine_rig(tmp_path, with_backend=False) as rig:
        answer = await rig.ensure(address="here")
        assert answer.status_code == 400
        assert BACKEND in msgspec.json.decode(answer.content)["message"]
        assert (await rig.client.get("/instance")).status_code == 424


@pytest.mark.parametrize("end", ["stopped", "failed"])
async def test_a_replacement_is_denied_when_the_vm_has_ended_and_is_not_run_down(tmp_path: Path, end: str) -> None:
    async with engine_rig(tmp_path) as rig:
        await rig.ensure(address="here")
        # Between the end and the run-down a driver does nothing that takes time: what is told then is told here.
        vm = rig.server._vm
        assert vm
        assert vm.objects
        getattr(vm.objects.driver._queue, end)()
        answer = await rig.replace("elsewhere", 2)
        reason = {"stopped": DenyReason.Halted, "failed": DenyReason.InstanceFailed}[end]
        assert answer.status_code == 403
        assert answer.json() == {
            "request_id": answer.headers["x-request-id"],
            "error_code": f"instance state change not allowed: {reason.value}",
            "message": "Forbidden",
        }
