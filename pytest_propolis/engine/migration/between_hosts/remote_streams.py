"""Streams between the servers of a migration whose hosts share no files: one websocket each, which the target opens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final
from uuid import UUID

from ..failure import MigrationFailed
from ..protocol import Connection, ConnectionLost
from ..stream import CONNECT_TIMEOUT_S

__all__ = ["STATE_STREAM", "CarriedSocket", "StreamExchange", "disk_stream"]

CHUNK_BYTES: Final = 1 << 18

STATE_STREAM: Final = "state"
"""The name of the websocket that carries QEMU's state."""


def disk_stream(number: int) -> str:
    """Return the name of the websocket that carries one of the disks that are copied."""
    return f"disk-{number}"


class CarriedSocket:
    """A local socket that is relayed through a websocket, both ways, until either is closed. Close it in any case.

    Relaying starts at construction.

    :param connection: becomes this object's.
    :param local: the socket, which becomes this object's; if None, one is made, and `local_end` is its other end.
    :param outgoing: returns what of the data from the local socket is to be relayed; called in a thread.
    """

    def __init__(
        self,
        connection: Connection,
        local: socket.socket | None = None,
        *,
        outgoing: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._local_end: socket.socket | None = None
        if local is None:
            self._local_end, local = socket.socketpair()
        local.setblocking(False)
        self._local = local
        self.carried_bytes = 0
        self._work = asyncio.create_task(self._forward())

    def take_local_end(self) -> socket.socket:
        """Return the other end of a socket that was created here. The caller closes it."""
        assert self._local_end is not None
        local_end, self._local_end = self._local_end, None
        local_end.setblocking(False)
        return local_end

    async def ended(self) -> None:
        """Wait until relaying has ended."""
        await asyncio.wait([self._work])

    async def close(self) -> None:
        """Close both ends. Idempotent."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        await self._close_ends()  # also when the work was cancelled before it began

    async def _forward(self) -> None:
        directions = [asyncio.create_task(self._forward_outgoing()), asyncio.create_task(self._forward_incoming())]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            await self._close_ends()

    async def _forward_outgoing(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, ConnectionLost):
            while data := await loop.sock_recv(self._local, CHUNK_BYTES):
                if self._outgoing is not None and not (data := await asyncio.to_thread(self._outgoing, data)):
                    continue
                await self._connection.send(data)
                self.carried_bytes += len(data)

    async def _forward_incoming(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, ConnectionLost):
            while True:
                data = await self._connection.receive()
                assert isinstance(data, bytes)
                await loop.sock_sendall(self._local, data)
                self.carried_bytes += len(data)

    async def _close_ends(self) -> None:
        self._local.close()
        if self._local_end is not None:
            self._local_end.close()
        await self._connection.close("")


class StreamExchange:
    """The source's side: awaits the websockets of a migration. Close it in any case."""

    def __init__(self, migration_id: UUID) -> None:
        self.id = migration_id
        self._connections: dict[str, asyncio.Future[Connection]] = {}
        self._carried: list[CarriedSocket] = []
        self._is_closed = False

    @property
    def carried_bytes(self) -> int:
        return sum(carried.carried_bytes for carried in self._carried)

    def accept(self, name: str, connection: Connection) -> None:
        """Accept a websocket of the target, or abandon it if the migration has ended."""
        future = self._future(name)
        if self._is_closed or future.done():
            connection.abandon()
        else:
            future.set_result(connection)

    async def take(self, name: str, *, outgoing: Callable[[bytes], bytes] | None = None) -> socket.socket:
        """Return a socket whose other end is the target's. The caller closes it.

        :param outgoing: as that of `CarriedSocket`.
        :raises MigrationFailed: when the target does not open its websocket.
        """
        carried = CarriedSocket(await self.take_connection(name), outgoing=outgoing)
        self._carried.append(carried)
        return carried.take_local_end()

    async def take_connection(self, name: str) -> Connection:
        """Return a websocket of the target. It is closed with this object.

        :raises MigrationFailed: when the target does not open it.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._future(name)
        except TimeoutError:
            raise MigrationFailed(f"the target has not opened the stream {name}") from None

    async def close(self) -> None:
        """End all streams. Idempotent."""
        self._is_closed = True
        for connection in self._connections.values():
            if connection.done() and not connection.cancelled():
                connection.result().abandon()
        await asyncio.gather(*(carried.close() for carried in self._carried))

    def _future(self, name: str) -> asyncio.Future[Connection]:
        return self._connections.setdefault(name, asyncio.get_running_loop().create_future())
