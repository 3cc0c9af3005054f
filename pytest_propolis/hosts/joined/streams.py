"""Connections as pairs of streams: messages at their beginning, and relays between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, Final

import msgspec

from ...agent.peers.limits import BUFFER_BYTES
from ...propolis_api.connection.sockets import abort

__all__ = ["CHUNK_BYTES", "Ends", "Work", "receive", "relay", "send"]

CHUNK_BYTES: Final = 1 << 18
CLOSE_TIMEOUT_S: Final = 10.0

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Work:
    """Tasks that end with their owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[None]) -> None:
        """Do work concurrently; a broken connection ends it without an error."""
        task = asyncio.ensure_future(_until_broken(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel what is not done, and wait for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _until_broken(work: Awaitable[None]) -> None:
    with contextlib.suppress(OSError, EOFError):
        await work


def send(writer: asyncio.StreamWriter, message: msgspec.Struct) -> None:
    """Send a message."""
    writer.write(msgspec.json.encode(message) + b"\n")


async def receive(reader: asyncio.StreamReader, kind: Any) -> Any:
    """Return the next message.

    :param kind: a type, or a union of types.
    :raises EOFError: when the connection ends.
    :raises ConnectionError: when it is broken, or the other side sends something else.
    """
    try:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, ValueError):  # a ValueError is that of a line that is too long
        raise ConnectionError("the other side does not speak as expected") from None


async def relay(one: Ends, other: Ends) -> None:
    """Relay between two connections until either ends; then send what it has sent, and end both."""
    for _, writer in (one, other):
        writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
    directions = [asyncio.create_task(_forward(one[0], other[1])), asyncio.create_task(_forward(other[0], one[1]))]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for _, writer in (one, other):
            writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(*(writer.wait_closed() for _, writer in (one, other)), return_exceptions=True)
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
        for _, writer in (one, other):
            abort(writer.transport)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
