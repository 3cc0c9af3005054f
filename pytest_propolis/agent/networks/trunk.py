"""A trunk: a websocket between the parts of a network on two hosts."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Final, Protocol

from .switch import Switch

__all__ = ["FrameConnection", "Trunk"]

HEADER: Final = struct.Struct(">HI")
"""The header of each frame: the number of its source port, and its length."""

QUEUE_BYTES: Final = 4 << 20
MESSAGE_BYTES: Final = 1 << 18


class FrameConnection(Protocol):
    """A websocket, whichever side opened it."""

    async def send(self, message: bytes) -> None:
        """:raises ConnectionError: when the other side has left."""

    async def receive(self) -> bytes:
        """:raises ConnectionError: when the other side has left."""

    async def close(self) -> None:
        """Close it. Idempotent."""


class Trunk:
    """Carries frames between two switches, in both directions, while `forward_frames` runs.

    :param part: the id of the part of the network at the other end.
    """

    def __init__(self, switch: Switch, connection: FrameConnection, *, part: str) -> None:
        self.number: int | None = None
        self.part = part
        self._switch = switch
        self._connection = connection
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._wake = asyncio.Event()

    @property
    def is_up(self) -> bool:
        return True

    def send(self, port: int, frame: bytes) -> None:
        if self._waiting_bytes < QUEUE_BYTES:
            self._waiting += HEADER.pack(port, len(frame)), frame
            self._waiting_bytes += len(frame)
            self._wake.set()

    async def forward_frames(self) -> None:
        """Carry frames until the other side disconnects."""
        self._switch.add(self)
        directions = [asyncio.create_task(self._send_all()), asyncio.create_task(self._receive_all())]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._switch.remove(self)
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            await self._connection.close()

    async def _send_all(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._wake.wait()
                self._wake.clear()
                waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
                await self._connection.send(b"".join(waiting))

    async def _receive_all(self) -> None:
        with contextlib.suppress(ConnectionError, struct.error):
            while True:
                message = await self._connection.receive()
                start = 0
                while start < len(message):
                    port, size = HEADER.unpack_from(message, start)
                    start += HEADER.size + size
                    self._switch.receive(message[start - size : start], port=port, attachment=self)
