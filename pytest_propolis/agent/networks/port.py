"""A port of a switch: a UNIX socket to which a QEMU connects a network card."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, cast

from .dhcp import DhcpServer, is_for_server
from .router import RouterAdvertiser, is_solicitation
from .switch import Switch

__all__ = ["Port"]

LENGTH_BYTES: Final = 4
BUFFER_BYTES: Final = 1 << 18
"""More than the largest frame of a card that leaves segmentation to the host, 64 KiB and its header."""

FULL_BYTES: Final = 1 << 20
"""A receiver that lags by more than this loses frames, as at any switch."""


class Port:
    """Frames are received and sent on every connection to the socket: while a guest migrates there are two, for one
    card.

    :param number: names it on all hosts.
    :param part: the id of the part of the network that it belongs to.
    :param path: of the socket; in a private directory.
    :param dhcp: answers the card's requests, which no other card receives then.
    :param router: answers its solicitations of routers; likewise.
    """

    def __init__(
        self,
        switch: Switch,
        *,
        number: int,
        part: str,
        path: Path,
        dhcp: DhcpServer | None = None,
        router: RouterAdvertiser | None = None,
    ) -> None:
        self.number: int | None = number
        self.part = part
        self.path = path
        self._number = number
        self._switch = switch
        self._dhcp = dhcp
        self._router = router
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    @property
    def is_up(self) -> bool:
        return bool(self.connections)

    async def open(self) -> None:
        """Listen.

        :raises OSError: when the socket cannot be made.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), str(self.path))
        self.path.chmod(0o600)
        self._switch.add(self)

    def send(self, port: int, frame: bytes) -> None:
        for connection in self.connections:
            connection.send(frame)

    def receive(self, frame: bytes) -> None:
        """Receive a frame from the card."""
        if self._dhcp is not None and is_for_server(frame):
            self._answer(frame, self._dhcp.answer(frame))
        elif self._router is not None and is_solicitation(frame):
            self._answer(frame, self._router.advertisement)
        else:
            self._switch.receive(frame, port=self._number, attachment=self)

    def _answer(self, frame: bytes, answer: bytes | None) -> None:
        """Answer a frame that no other card receives."""
        for seen in filter(None, (frame, answer)):
            self._switch.capture.add(seen)
        if answer is not None:
            self.send(self._number, answer)

    def close(self) -> None:
        """Disconnect all cards, and accept no more. Idempotent."""
        self._switch.remove(self)
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()
        self.path.unlink(missing_ok=True)


class _Connection(asyncio.BufferedProtocol):
    """A connection to QEMU: each frame follows its length in four bytes, big-endian."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._port.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.connections.discard(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        start = 0
        while self._filled - start >= LENGTH_BYTES:
            size = int.from_bytes(self._view[start : start + LENGTH_BYTES], "big")
            end = start + LENGTH_BYTES + size
            if size > BUFFER_BYTES - LENGTH_BYTES:
                self.close()  # it speaks something else
                return
            if end > self._filled:
                break
            self._port.receive(bytes(self._view[start + LENGTH_BYTES : end]))
            start = end
        self._buffer[: self._filled - start] = self._buffer[start : self._filled]
        self._filled -= start

    def send(self, frame: bytes) -> None:
        """Send a frame with all others of this step of the event loop: the system takes as long for one as for many."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size() + self._waiting_bytes >= FULL_BYTES:
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting += len(frame).to_bytes(LENGTH_BYTES, "big"), frame
        self._waiting_bytes += len(frame)

    def _flush(self) -> None:
        assert self._transport is not None
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not self._transport.is_closing():
            self._transport.write(b"".join(waiting))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
