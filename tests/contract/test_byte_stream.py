"""Streams of bytes over a websocket, with the library websockets on the other side."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response

from pytest_propolis.propolis_api.connection.byte_stream import (
    ByteStream,
    StreamEnded,
    StreamRefused,
    _Opening,
    open_byte_stream,
)
from pytest_propolis.propolis_api.connection.endpoint import Endpoint

PAYLOADS = [b"", b"a", bytes(range(125)), bytes(range(126)), bytes(range(256)) * 257]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        if message == b"end":
            await (await connection.ping())
            await connection.send("last words")
            return
        await connection.send(message)


async def refuse_others(connection: ServerConnection, request: Request) -> Response | None:
    return None if request.path == "/vms/1/ports/9" else connection.respond(HTTPStatus.NOT_FOUND, "")


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Endpoint]:
    place = directory / "socket"
    async with unix_serve(echo, str(place), process_request=refuse_others, compression=None):
        yield Endpoint(base_url="http://agent/vms/1", uds=place)


async def received(stream: ByteStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive()
    return data


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
async def test_frames_that_arrive_in_pieces_are_one_stream(size: int) -> None:
    frames = [Frame(Opcode.BINARY, payload) for payload in PAYLOADS]
    frames += [Frame(Opcode.BINARY, b"be", fin=False), Frame(Opcode.CONT, b"gun"), Frame(Opcode.TEXT, b"text")]
    wire = b"".join(frame.serialize(mask=True) for frame in frames)
    stream = ByteStream(is_client=False)
    seen = bytearray()
    stream.listen(seen.extend)
    for start in range(0, len(wire), size):
        stream.data_received(wire[start : start + size])
    assert seen == b"".join(PAYLOADS) + b"begun"
    assert stream.text == "text"
    assert not stream.ended.done()


async def test_bytes_pass_both_ways_until_one_side_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as endpoint:
        stream = await open_byte_stream(endpoint, "/ports/9")
        for payload in PAYLOADS[1:]:
            await stream.send(payload)
            assert await received(stream, len(payload)) == payload
        await stream.send(b"end")
        async with asyncio.timeout(20):
            await asyncio.wait([stream.ended])
        assert stream.text == "last words"
        with pytest.raises(StreamEnded):
            await stream.receive()
        with pytest.raises(StreamEnded):
            await stream.send(b"late")
        stream.abort()


async def test_a_server_that_refuses_is_an_error_with_its_status(tmp_path: Path) -> None:
    async with served(tmp_path) as endpoint:
        with pytest.raises(StreamRefused) as refused:
            await open_byte_stream(endpoint, "/ports/99")
        assert refused.value.status == 404
    with pytest.raises(OSError, match=r"No such file|refused"):
        await open_byte_stream(endpoint, "/ports/9")


async def test_a_late_listener_gets_what_came_before(tmp_path: Path) -> None:
    async with served(tmp_path) as endpoint:
        stream = await open_byte_stream(endpoint, "/ports/9")
        await stream.send(b"queued")
        while not stream._queue:
            await asyncio.sleep(0)
        seen = bytearray()
        stream.listen(seen.extend)
        assert seen == b"queued"
        stream.abort()


async def test_a_stream_that_has_ended_after_its_close_frame_can_be_aborted() -> None:
    """The close frame came while data waited to be sent; asyncio's own abort of such a connection raises."""
    here, there = socket.socketpair()
    with there:
        stream = ByteStream(is_client=True)
        await asyncio.get_running_loop().create_connection(lambda: stream, sock=here)
        stream.write(bytes(10_000_000))
        there.sendall(Frame(Opcode.CLOSE, b"").serialize(mask=False))
        await stream.ended
        there.setblocking(False)
        while not stream._lost.done():
            with contextlib.suppress(BlockingIOError):
                there.recv(1 << 20)
            await asyncio.sleep(0)
        stream.abort()


async def test_an_opening_that_is_cancelled_while_it_connects_complains_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    made = _Opening.connection_made

    def made_and_cancelled(connection: _Opening, transport: asyncio.BaseTransport) -> None:
        made(connection, transport)
        for task in openings:
            task.cancel()

    monkeypatch.setattr(_Opening, "connection_made", made_and_cancelled)
    async with served(tmp_path) as endpoint:
        openings = [asyncio.create_task(open_byte_stream(endpoint, "/ports/9"))]
        with pytest.raises(asyncio.CancelledError):
            await openings[0]
    openings.clear()
    gc.collect()
    assert complaints == []
