"""A guest port over a websocket: binary frames both ways, each side no faster than the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..qemu.guest_ports import GuestPort

__all__ = ["serve_guest_port"]

GOING_AWAY: Final = 1001


async def serve_guest_port(websocket: WebSocket, port: GuestPort) -> None:
    """Serve one client until it leaves or the machine ends. A second client waits for that."""
    async with port.taken():
        await websocket.accept()
        tasks = [asyncio.create_task(_in(websocket, port)), asyncio.create_task(_out(websocket, port))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.close(GOING_AWAY, "the guest's port has ended")


async def _in(websocket: WebSocket, port: GuestPort) -> None:
    with contextlib.suppress(OSError):
        while (message := await websocket.receive())["type"] == "websocket.receive":
            if data := message.get("bytes"):
                await port.write(data)


async def _out(websocket: WebSocket, port: GuestPort) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while data := await port.read():
            await websocket.send_bytes(data)
