"""A relay between two connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from .stream import StreamListener

__all__ = ["Relay"]

CHUNK_BYTES: Final = 1 << 18


class Relay:
    """Carries bytes both ways between its first client and a far end, until either closes its connection.

    QEMU's own remedy for a far end that hangs does not work on UNIX sockets: shut down while it is full, such a socket
    never becomes writable, and QEMU waits for that forever. Here the near end can be closed, as if the far end were
    dead.

    :param listener: where the near end connects; it becomes the relay's.
    :param remote_end: becomes the relay's.
    """

    def __init__(self, listener: StreamListener, remote_end: socket.socket) -> None:
        self._listener = listener
        self._remote_end = remote_end
        self._local_end: socket.socket | None = None
        self._work = asyncio.create_task(self._forward_both())

    async def close(self) -> None:
        """Close the connection at both ends. Idempotent."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self._close_ends()  # also when it was cancelled before it began

    def _close_ends(self) -> None:
        self._listener.close()
        self._remote_end.close()
        if self._local_end is not None:
            self._local_end.close()

    async def _forward_both(self) -> None:
        carriers: list[asyncio.Task[None]] = []
        try:
            local_end = self._local_end = await self._listener.accept()
            local_end.setblocking(False)
            pairs = [(local_end, self._remote_end), (self._remote_end, local_end)]
            carriers = [asyncio.create_task(_forward(*pair)) for pair in pairs]
            await asyncio.wait(carriers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for carrier in carriers:
                carrier.cancel()
            await asyncio.gather(*carriers, return_exceptions=True)
            self._close_ends()


async def _forward(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while size := await loop.sock_recv_into(source, buffer):
            await loop.sock_sendall(target, buffer[:size])
