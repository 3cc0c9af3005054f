"""When a lingering agent exits, and which clients it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio
from starlette.types import Message

from pytest_propolis.agent import lingering
from pytest_propolis.agent.app import AgentApp
from pytest_propolis.agent_api.agent_process import CLIENT_HEADER, LINGER_HEADER, AgentConfig, LingerListed
from pytest_propolis.agent_api.messages import Keep, ResourceIds
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger

DEADLINE_S = 30.0


class Rig:
    """An agent's application without its process, and its lifelines."""

    def __init__(self, root: Path, *, lingers: bool) -> None:
        directory = root / "run" / "word-1"
        directory.mkdir(parents=True)
        config = AgentConfig(run="word", directory=str(directory), artifact_dir=str(root / "store"), lingers=lingers)
        self.ledger = Ledger.open(directory / LEDGER_NAME, run="word", lingers=lingers)
        self.has_left = asyncio.Event()
        self.app = AgentApp(config, self.ledger, on_empty=self.has_left.set)

    async def ask(self, method: str) -> LingerListed:
        transport = httpx.ASGITransport(app=self.app.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            return msgspec.json.decode((await client.request(method, "/linger")).content, type=LingerListed)

    async def lifeline(self, client: str, *, linger_s: float) -> Lifeline:
        """Open one; its status says whether it was accepted."""
        opened = Lifeline(client, linger_s)
        opened.serving = asyncio.create_task(self.app.asgi(opened.scope, opened.receive, opened.send))
        async with asyncio.timeout(DEADLINE_S):
            await opened.answered.wait()
        return opened


class Lifeline:
    def __init__(self, client: str, linger_s: float) -> None:
        headers = {CLIENT_HEADER: client, LINGER_HEADER: str(linger_s)}
        self.scope = {
            "type": "http",
            "method": "GET",
            "path": "/lifeline/",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
        }
        self.status = 0
        self.answered = asyncio.Event()
        self.serving: asyncio.Future[None]
        self._closed = asyncio.Event()

    async def receive(self) -> Message:
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.answered.set()

    async def close(self) -> None:
        self._closed.set()
        await self.serving


@pytest_asyncio.fixture(params=[True])
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path, lingers=request.param)
    try:
        yield rig
    finally:
        await rig.app.close()
        rig.ledger.close()


async def test_it_waits_for_the_next_client_as_long_as_the_latest_one_asked(rig: Rig) -> None:
    first, second = await rig.lifeline("a.1", linger_s=5000), await rig.lifeline("b.1", linger_s=600)
    await first.close()
    assert await rig.ask("GET") == LingerListed(seconds=600)
    await second.close()
    found = await rig.ask("GET")
    assert found.seconds == 600
    assert found.until is not None
    assert not rig.app.is_unused
    assert not rig.has_left.is_set()


async def test_a_client_that_comes_in_time_has_it_stay(rig: Rig) -> None:
    await (await rig.lifeline("a.1", linger_s=600)).close()
    second = await rig.lifeline("b.1", linger_s=0)
    assert second.status == 200
    assert not rig.has_left.is_set()
    await second.close()
    assert rig.has_left.is_set(), "the latest client asked for no more"


async def test_it_leaves_when_its_time_is_over(rig: Rig) -> None:
    await (await rig.lifeline("a.1", linger_s=0.01)).close()
    async with asyncio.timeout(DEADLINE_S):
        await rig.has_left.wait()
    assert (await rig.lifeline("b.1", linger_s=600)).status == 503


@pytest.mark.parametrize("rig", [False], indirect=True)
async def test_an_agent_of_one_run_leaves_with_it_whatever_its_client_asks_for(rig: Rig) -> None:
    await (await rig.lifeline("a.1", linger_s=600)).close()
    assert rig.has_left.is_set()


async def test_on_request_it_leaves_at_once_without_clients(rig: Rig) -> None:
    await (await rig.lifeline("a.1", linger_s=600)).close()
    assert (await rig.ask("DELETE")).until is not None
    assert rig.has_left.is_set()


async def test_on_request_it_serves_the_run_that_it_has_and_no_other(rig: Rig) -> None:
    first = await rig.lifeline("a.1", linger_s=600)
    await rig.ask("DELETE")
    assert (await rig.lifeline("b.1", linger_s=600)).status == 503
    second = await rig.lifeline("a.2", linger_s=600)
    assert second.status == 200
    await first.close()
    assert not rig.has_left.is_set()
    await second.close()
    assert rig.has_left.is_set()


async def test_with_a_long_ledger_it_gives_way_to_a_new_agent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await rig.lifeline("a.1", linger_s=600)).close()
    monkeypatch.setattr(lingering, "MOST_LEDGER_BYTES", 10)
    assert (await rig.lifeline("b.1", linger_s=600)).status == 503
    assert rig.has_left.is_set()


async def test_what_is_kept_outlives_its_time(rig: Rig) -> None:
    first = await rig.lifeline("a.1", linger_s=600)
    path = rig.ledger.path.with_name("disk")
    entry = rig.ledger.intend("file", {"path": str(path)}, rig.app.registry.writer_of("a.1").owner)
    rig.app.registry._resources_of("a.1").disks["disk"] = entry
    rig.app.registry.keep("a.1", Keep(resources=ResourceIds(disks=("disk",)), reason="a test", ttl_s=600))
    await first.close()
    await rig.ask("DELETE")
    assert not rig.has_left.is_set()
    (kept,) = rig.app.registry.list_kept()
    await rig.app._client_left(kept.id)
    assert rig.has_left.is_set()
