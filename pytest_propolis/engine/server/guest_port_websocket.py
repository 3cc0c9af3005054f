"""A guest port over a websocket: binary frames both ways, each side no faster than the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from ...agent_api.guest_ports import PortEnded
from ..qemu.guest_ports import GuestPort

__all__ = ["serve_guest_port"]

GOING_AWAY: Final = 1001


async def serve_guest_port(websocket: WebSocket, port: GuestPort) -> None:
    """Serve one client until it leaves or the machine ends; the close frame has the reason. A second client waits."""
    async with port.turn():
        await websocket.accept()
        before = port.taken
        out = asyncio.create_task(_out(websocket, port))
        tasks = [asyncio.create_task(_in(websocket, port, out)), out]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        taken = max(0, port.taken - before)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.send_text(msgspec.json.encode(PortEnded(taken=taken)).decode())
        await websocket.close(GOING_AWAY, "the guest's port has ended")


async def _in(websocket: WebSocket, port: GuestPort, out: asyncio.Task[None]) -> None:
    try:
        while (message := await websocket.receive())["type"] == "websocket.receive":
            if data := message.get("bytes"):
                await port.write(data)
    except OSError:
        await asyncio.wait([out])  # what the machine has written before its end comes first


async def _out(websocket: WebSocket, port: GuestPort) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while data := await port.read():
            await websocket.send_bytes(data)
