"""A serial port over a websocket: history and live output out, typed bytes in."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from ...propolis_api.serial import NOTICES_HEADER
from ..qemu.serial_history import HistoryGap
from ..qemu.serial_port import SerialPort

__all__ = ["serve_serial"]

FRAME_BYTES: Final = 16 << 10
STREAM_FRAMES: Final = 16
"""This many consecutive frames, each less than `STREAM_GAP_S` after the last, without input, are a stream."""

STREAM_GAP_S: Final = 0.002
GATHER_S: Final = 0.002
"""How long a stream is collected: QEMU writes single octets, and a small frame costs as much as a large one."""

GOING_AWAY: Final = 1001
TRY_AGAIN_LATER: Final = 1013
REASON_BYTES: Final = 123


async def serve_serial(websocket: WebSocket, port: SerialPort, offset: int) -> None:
    """Serve one client from `offset` on until it leaves or the port ends: 1001 "VM stopped", as upstream, or why.

    A client that needs what the history has dropped gets 1013.

    When the guest has migrated away, a text tells the client where to follow it, from which offset on, and, which
    upstream's does not, how much of the client's input the guest has or will get.
    """
    client = _Client(websocket, port)
    typing = asyncio.create_task(client.type())
    output = asyncio.create_task(client.show(offset))
    try:
        await asyncio.wait([typing, output], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (typing, output):
            task.cancel()
        await asyncio.gather(typing, output, return_exceptions=True)


def _bounded(reason: str) -> str:
    """Truncate a reason to fit into a close frame (RFC 6455, 5.5)."""
    text = reason.encode()
    return reason if len(text) <= REASON_BYTES else f"{text[: REASON_BYTES - 3].decode(errors='ignore')}…"


class _Client:
    def __init__(self, websocket: WebSocket, port: SerialPort) -> None:
        self._websocket = websocket
        self._port = port
        self._typed = 0
        """The number of this client's bytes that the guest has received or will receive."""
        self._frames = 0
        """The number of consecutive frames since the last input."""
        self._resets: deque[int] = deque()
        """The offsets of resets that the client is to be notified of."""

    async def show(self, offset: int) -> None:
        """Send the output from `offset` on. Notices of resets come where they happened, if the client opted in.

        Upstream's messages are a closed set, so its clients get none.
        """
        if NOTICES_HEADER in self._websocket.headers:
            self._port.reset_listeners.add(self._note_reset)
        try:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._show(offset)
        finally:
            self._port.reset_listeners.discard(self._note_reset)

    def _note_reset(self, offset: int) -> None:
        self._resets.append(offset)
        self._port.history.wake()

    async def _show(self, offset: int) -> None:
        port, loop = self._port, asyncio.get_running_loop()
        sent_s = 0.0
        while await port.history.wait_beyond(offset, unless=lambda: bool(self._resets)):
            if self._resets and self._resets[0] <= offset:
                self._resets.popleft()
                await self._websocket.send_json({"GuestReset": {}})
                continue
            self._frames = self._frames + 1 if loop.time() - sent_s < STREAM_GAP_S else 0
            if self._frames > STREAM_FRAMES:
                await asyncio.sleep(GATHER_S)
            limit = min(FRAME_BYTES, self._resets[0] - offset) if self._resets else FRAME_BYTES
            try:
                data = port.history.read(offset, limit)
            except HistoryGap as gap:
                # A client that has received output was so slow that a part of what follows is gone.
                reason = "too slow: output was dropped" if sent_s else str(gap)
                await self._websocket.close(TRY_AGAIN_LATER, _bounded(reason))
                return
            await self._websocket.send_bytes(data)
            offset += len(data)
            sent_s = loop.time()
        if port.moved_to is None:
            await self._websocket.close(GOING_AWAY, _bounded(port.end_reason))
        else:
            moved = {"destination": port.moved_to, "from_start": offset, "typed": self._typed}
            await self._websocket.send_json({"Migrating": moved})
            await self._websocket.close()

    async def type(self) -> None:
        try:
            while (message := await self._websocket.receive())["type"] == "websocket.receive":
                data, self._frames = message.get("bytes"), 0
                if data and await self._port.write(data):
                    self._typed += len(data)
        except OSError:
            await asyncio.Event().wait()  # QEMU has ended: `show` tells the client why, as soon as that is known
