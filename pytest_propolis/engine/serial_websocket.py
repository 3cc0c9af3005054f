"""A serial port over a websocket: history and live output out, typed bytes in."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from .serial_history import HistoryGap
from .serial_port import SerialPort

__all__ = ["serve_serial"]

FRAME_BYTES: Final = 16 << 10
GOING_AWAY: Final = 1001


async def serve_serial(websocket: WebSocket, port: SerialPort, offset: int) -> None:
    """Serve one client from `offset` on until it leaves or the port ends: 1001 "VM stopped", as upstream.

    When the guest has migrated away, a text tells the client where to follow it, and from which offset on.
    """
    typing = asyncio.create_task(_type(websocket, port))
    output = asyncio.create_task(_show(websocket, port, offset))
    try:
        await asyncio.wait([typing, output], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (typing, output):
            task.cancel()
        await asyncio.gather(typing, output, return_exceptions=True)


async def _show(websocket: WebSocket, port: SerialPort, offset: int) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while await port.history.wait_beyond(offset):
            try:
                data = port.history.read(offset, FRAME_BYTES)
            except HistoryGap:
                # This client was so slow that a part of what it has not seen is gone.
                await websocket.close(GOING_AWAY, "too slow: output was dropped")
                return
            await websocket.send_bytes(data)
            offset += len(data)
        if port.moved_to is None:
            await websocket.close(GOING_AWAY, "VM stopped")
        else:
            await websocket.send_json({"Migrating": {"destination": port.moved_to, "from_start": offset}})
            await websocket.close()


async def _type(websocket: WebSocket, port: SerialPort) -> None:
    with contextlib.suppress(OSError):
        while (message := await websocket.receive())["type"] == "websocket.receive":
            if data := message.get("bytes"):
                await port.write(data)
