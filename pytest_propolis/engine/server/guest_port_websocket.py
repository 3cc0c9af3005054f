"""A guest port over a websocket: binary frames both ways, each side no faster than the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec
from starlette.websockets import WebSocket

from ...agent_api.guest_ports import PortEnded
from ...propolis_api.connection.byte_stream import ByteStream
from ...propolis_api.connection.websocket_protocol import detached
from ..qemu.guest_ports import GuestPort

__all__ = ["serve_guest_port"]

GOING_AWAY: Final = 1001


async def serve_guest_port(websocket: WebSocket, port: GuestPort) -> None:
    """Serve one client until it leaves or the machine ends; the close frame has the reason. A second client waits."""
    async with port.turn():
        await websocket.accept()
        stream = detached(websocket.scope)
        before = port.taken
        relay = _Relay(stream, port)
        port.on_closed_by_guest = relay.close
        try:
            await relay.run()
        finally:
            port.on_closed_by_guest = None
            end = PortEnded(taken=max(0, port.taken - before), closed_by_guest=relay.closed_by_guest)
            await stream.close(GOING_AWAY, msgspec.json.encode(end).decode(), "the guest's port has ended")


class _Relay:
    """Copies between a stream and a port. Each byte that is not copied yet stays where it is."""

    def __init__(self, stream: ByteStream, port: GuestPort) -> None:
        self._stream = stream
        self._port = port
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing: asyncio.Task[None] | None = None
        """Writes to the guest what it did not take at once."""
        self._rest = bytearray()
        self.closed_by_guest = False

    async def run(self) -> None:
        """Copy until one side ends."""
        self._stream.on_writable = self._follow
        self._stream.listen(self._to_guest)
        self._follow(True)
        try:
            await asyncio.wait([self._ended, self._stream.ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._port.watch(None)
            if self._writing is not None:
                self._writing.cancel()
                await asyncio.gather(self._writing, return_exceptions=True)

    def close(self) -> None:
        """End, after what the guest has written before it closed the port."""
        while data := self._port.try_read():
            self._stream.write(data)
        if not self._ended.done():
            self.closed_by_guest = True
            self._ended.set_result(None)

    def _follow(self, writable: bool) -> None:
        self._port.watch(self._from_guest if writable and not self._ended.done() else None)

    def _from_guest(self) -> None:
        data = self._port.try_read()
        if data:
            self._stream.write(data)
        elif data is not None and not self._ended.done():
            self._port.watch(None)
            self._ended.set_result(None)

    def _to_guest(self, data: bytes) -> None:
        if self._writing is not None:
            self._rest += data
            return
        try:
            written = self._port.try_write(data)
        except OSError:
            return  # the end of the port is found by reading
        if written < len(data):
            self._rest += memoryview(data)[written:]
            self._stream.pause_reading()
            self._writing = asyncio.create_task(self._write_rest())

    async def _write_rest(self) -> None:
        with contextlib.suppress(OSError):
            while self._rest:
                rest, self._rest = self._rest, bytearray()
                await self._port.write(bytes(rest))
        self._writing = None
        self._stream.resume_reading()
