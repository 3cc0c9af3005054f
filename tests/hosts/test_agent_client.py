"""Errors of an agent's clients, with the text of the response, from the agent or another program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from pytest_propolis.agent_api.image_recipe import ImageNeeded
from pytest_propolis.agent_api.messages import Fault
from pytest_propolis.errors import AgentError, PropolisError, ResourceExhausted
from pytest_propolis.hosts.agent_clients.asynchronous import AsyncAgentClient
from pytest_propolis.hosts.agent_clients.synchronous import AgentClient

Ask = Callable[[Path], Awaitable[object]]


@asynccontextmanager
async def server(socket: Path, status: int, body: bytes) -> AsyncIterator[None]:
    """Answer every request alike."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    async with await asyncio.start_unix_server(answer, socket):
        yield


async def call(socket: Path) -> object:
    async with AsyncAgentClient(socket, client="c") as client:
        return await client.list_vms()


async def stream(socket: Path) -> object:
    async with AsyncAgentClient(socket, client="c") as client:
        return await client.get_images(ImageNeeded(artifacts=()), lambda line: None)


async def without_event_loop(socket: Path) -> object:
    return await asyncio.to_thread(AgentClient(socket, client="c").vms)


@pytest.fixture(params=[call, stream, without_event_loop])
def ask(request: pytest.FixtureRequest) -> Ask:
    asks: Ask = request.param
    return asks


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 418, 422, 500, 501, 503])
async def test_the_text_of_every_error_is_shown_with_its_status(tmp_path: Path, ask: Ask, status: int) -> None:
    async with server(tmp_path / "s", status, b"no room for \xff this"):
        with pytest.raises(PropolisError) as caught:
            await ask(tmp_path / "s")
    assert "no room for \N{REPLACEMENT CHARACTER} this" in str(caught.value)
    assert str(status) in str(caught.value)


async def test_an_error_without_a_text_is_shown_with_its_status(tmp_path: Path, ask: Ask) -> None:
    async with server(tmp_path / "s", 500, b""):
        with pytest.raises(PropolisError, match="500"):
            await ask(tmp_path / "s")


async def test_a_long_text_is_cut(tmp_path: Path, ask: Ask) -> None:
    async with server(tmp_path / "s", 500, b"x" * 100_000):
        with pytest.raises(PropolisError) as caught:
            await ask(tmp_path / "s")
    assert len(str(caught.value)) < 5_000


async def test_an_error_that_an_agent_reports_is_raised_as_what_it_was_there(tmp_path: Path, ask: Ask) -> None:
    fault = Fault.of(ResourceExhausted("no space left", hint="free some", console_tail=("one", "two")))
    async with server(tmp_path / "s", 422, msgspec.json.encode(fault)):
        with pytest.raises(ResourceExhausted, match="no space left") as caught:
            await ask(tmp_path / "s")
    assert (caught.value.hint, caught.value.console_tail) == ("free some", ("one", "two"))


@pytest.mark.parametrize("body", [b"no JSON", b'{"neither": "nor"}'])
async def test_an_answer_of_another_kind_is_an_error_that_names_the_agent(
    tmp_path: Path, ask: Ask, body: bytes
) -> None:
    async with server(tmp_path / "s", 200, body):
        with pytest.raises(AgentError) as caught:
            await ask(tmp_path / "s")
    assert str(tmp_path / "s") in str(caught.value)


async def test_an_agent_that_has_gone_is_named_with_its_log(tmp_path: Path, ask: Ask) -> None:
    with pytest.raises(AgentError, match="does not answer") as caught:
        await ask(tmp_path / "s")
    assert str(tmp_path / "agent.log") in str(caught.value)
