"""Answers of the agent leave in one write each."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from pytest_propolis.propolis_api.connection.http_protocol import CoalescingProtocol

REQUEST = b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n"


class RecordingTransport(asyncio.Transport):
    """Records the data of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def written(*parts: bytes, pause: bool = False, headers: bytes = b"") -> RecordingTransport:
    """Have an application respond with these parts, and return the writes."""
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if pause:
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})
        done.set()

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    protocol = CoalescingProtocol(config=config, server_state=ServerState(), app_state={})
    transport = RecordingTransport()
    protocol.connection_made(transport)
    protocol.data_received(REQUEST.replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n"))
    await done.wait()
    await asyncio.sleep(0)
    protocol.connection_lost(None)
    return transport


async def test_head_and_body_are_one_write() -> None:
    (answer,) = (await written(b"body")).writes
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"body" in answer


async def test_parts_that_come_later_are_not_held_back() -> None:
    writes = (await written(b"first", b"second", pause=True)).writes
    assert b"first" in writes[0]
    assert b"second" not in writes[0]
    assert b"second" in b"".join(writes)


async def test_nothing_is_lost_when_the_connection_is_closed_with_the_answer() -> None:
    transport = await written(b"body", headers=b"Connection: close\r\n")
    assert transport.closed
    assert b"body" in b"".join(transport.writes)
