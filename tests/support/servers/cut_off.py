"""A proxy of a UNIX socket that can be cut in the middle of a transfer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

__all__ = ["CutOff", "cut_off"]

CHUNK_BYTES = 1 << 16


class CutOff:
    """Forwards bytes to a socket and back, up to a number of bytes.

    :param after_bytes: the bytes that come back before the proxy closes and refuses connections; None for no limit.
    """

    def __init__(self, socket: Path, *, after_bytes: int | None) -> None:
        self._socket = socket
        self.left_bytes = after_bytes
        self.came_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            if self.left_bytes == 0:
                return
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._socket))
            with contextlib.closing(far_writer):
                ways = [
                    asyncio.create_task(self._carry(reader, far_writer, counted=False)),
                    asyncio.create_task(self._carry(far_reader, writer, counted=True)),
                ]
                self._tasks.update(ways)
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                self._tasks.difference_update(ways)
                for way in ways:
                    way.cancel()

    def cut(self) -> None:
        """Close all connections, and refuse new ones."""
        self.left_bytes = 0
        self.cut_connections()

    def cut_connections(self) -> None:
        """Close all connections; accept new ones."""
        for task in self._tasks:
            task.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if counted:
                    self.came_bytes += len(data)
                    data = self._let_through(data)
                writer.write(data)
                await writer.drain()

    def _let_through(self, data: bytes) -> bytes:
        if self.left_bytes is None:
            return data
        data = data[: self.left_bytes]
        self.left_bytes -= len(data)
        if self.left_bytes == 0:
            self.cut()
        return data


@contextlib.asynccontextmanager
async def cut_off(socket: Path, path: Path, *, after_bytes: int | None = None) -> AsyncIterator[CutOff]:
    """Listen at `path`, and forward connections to `socket`."""
    made = CutOff(socket, after_bytes=after_bytes)
    server = await asyncio.start_unix_server(made.accept, path)
    try:
        yield made
    finally:
        made.cut()
        server.close()
