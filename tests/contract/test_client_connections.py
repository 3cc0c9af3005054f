"""The client's connections: none, lost, silent, many at once, consoles, TCP, no TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from client_operations import ANSWERS, CALLS, OPERATIONS, PREFIX, call
from recording_server import Recorder, recording, serving
from websockets.asyncio.client import ClientConnection

from pytest_propolis.errors import AgentError
from pytest_propolis.propolis_api.client import (
    ANSWER_TIMEOUT_S,
    ENSURE_TIMEOUT_S,
    VOLUME_TIMEOUT_S,
    Endpoint,
    PropolisClient,
)
from pytest_propolis.propolis_api.connection.http import HttpAnswer


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[Recorder]:
    async with recording(tmp_path / "s") as recorder:
        yield recorder


@pytest.fixture
async def client(recorder: Recorder, tmp_path: Path) -> AsyncIterator[PropolisClient]:
    async with PropolisClient(Endpoint(base_url=f"http://agent{PREFIX}", uds=tmp_path / "s"), vm="alice") as client:
        yield client


@pytest.mark.parametrize("name", OPERATIONS)
async def test_no_server_is_an_agent_error(name: str, tmp_path: Path) -> None:
    async with PropolisClient(Endpoint(base_url="http://agent", uds=tmp_path / "s"), vm="alice") as client:
        with pytest.raises(AgentError, match="No such file") as caught:
            await CALLS[name](client)
    assert (caught.value.vm, caught.value.operation) == ("alice", name)
    assert str(tmp_path / "s") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["instance_get", "instance_serial"])
async def test_a_refused_connection_is_an_agent_error(name: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s"))
        async with PropolisClient(Endpoint(base_url="http://agent", uds=tmp_path / "s")) as client:
            with pytest.raises(AgentError, match="Connection refused"):
                await CALLS[name](client)


@pytest.mark.parametrize("name", ["instance_get", "instance_state_monitor", "instance_serial"])
async def test_a_lost_connection_is_an_agent_error(name: str, tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    endpoint = Endpoint(base_url="http://agent", uds=tmp_path / "s")
    async with await asyncio.start_unix_server(hang_up, tmp_path / "s"), PropolisClient(endpoint) as client:
        with pytest.raises(AgentError, match="does not answer"):
            await CALLS[name](client)


async def test_silence_is_an_agent_error_that_says_how_long(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answering.clear()
    with pytest.raises(AgentError, match="is silent") as caught:
        await client._send("instance_get", "GET", "/instance", timeout_s=0.05)
    assert caught.value.waited_s is not None
    assert caught.value.waited_s >= 0.05


async def test_a_silent_upgrade_is_an_agent_error(
    client: PropolisClient, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_propolis.propolis_api.connection.transport.CONNECT_TIMEOUT_S", 0.05)
    recorder.answering.clear()
    with pytest.raises(AgentError, match="is silent"):
        await client.instance_serial()


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_operation_waits_as_long_as_it_may_take(
    name: str, client: PropolisClient, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    ask = client._http.request

    async def note(*args: Any, timeout_s: float | None, **options: Any) -> HttpAnswer:
        limits.append(timeout_s)
        return await ask(*args, timeout_s=timeout_s, **options)

    monkeypatch.setattr(client._http, "request", note)
    await call(name, client, recorder)
    long = {
        "instance_state_monitor": None,
        "instance_ensure": ENSURE_TIMEOUT_S,
        "instance_issue_crucible_vcr_request": VOLUME_TIMEOUT_S,
        "instance_issue_crucible_snapshot_request": VOLUME_TIMEOUT_S,
    }
    assert limits == [long.get(name, ANSWER_TIMEOUT_S)]


async def test_a_cancelled_wait_leaves_the_client_usable(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answering.clear()
    waiting = asyncio.create_task(client.instance_state_monitor(9))
    while not recorder.seen:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    recorder.answering.set()
    await call("instance_get", client, recorder)


async def test_other_operations_go_on_beside_a_wait(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answering.clear()
    recorder.answer = (200, json.dumps(ANSWERS["instance_state_monitor"]).encode())
    waiting = [asyncio.create_task(client.instance_state_monitor(9)) for _ in range(120)]
    async with asyncio.timeout(20):
        while len(recorder.seen) < len(waiting):
            await asyncio.sleep(0.01)
    recorder.answering.set()
    assert {answer.gen for answer in await asyncio.gather(*waiting)} == {3}


async def test_the_console_carries_large_frames_uncompressed(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (101, b"")
    large = bytes(3 << 20)
    async with client.instance_serial() as console:
        await console.send(large)
        assert await console.recv() == large
    assert "sec-websocket-extensions" not in recorder.seen[0]["headers"]


async def test_an_idle_console_is_never_pinged(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (101, b"")
    async with client.instance_serial() as console:
        assert console.ping_interval is None
        assert console.keepalive_task is None


async def test_leaving_a_console_closes_it(client: PropolisClient, recorder: Recorder) -> None:
    recorder.answer = (101, b"")
    async with client.instance_serial() as console:
        pass
    assert console.close_code == 1000


@pytest.fixture
async def console(client: PropolisClient, recorder: Recorder) -> AsyncIterator[ClientConnection]:
    recorder.answer = (101, b"")
    async with client.instance_serial() as console:
        yield console


async def test_a_fixture_may_keep_a_console_open_over_its_yield(console: ClientConnection) -> None:
    await console.send(b"ls\n")
    assert await console.recv() == b"ls\n"


@pytest.mark.parametrize("path", ["", "/", PREFIX, f"{PREFIX}/"])
async def test_a_tcp_endpoint_with_any_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    recorder = Recorder()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
        async with serving(recorder, listener), PropolisClient(Endpoint(base_url=base_url)) as client:
            await call("instance_get", client, recorder)
            await call("instance_serial", client, recorder)
    prefix = path.rstrip("/")
    assert [seen["path"] for seen in recorder.seen] == [f"{prefix}/instance", f"{prefix}/instance/serial"]


async def test_closing_twice_is_fine(client: PropolisClient, recorder: Recorder) -> None:
    await call("instance_get", client, recorder)
    await client.aclose()
    await client.aclose()


async def test_no_certificates_are_read_without_tls(client: PropolisClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: Any, **_options: Any) -> None:
        raise AssertionError("certificates are read")

    monkeypatch.setattr(ssl, "create_default_context", load)
    await client.issue_nmi()
