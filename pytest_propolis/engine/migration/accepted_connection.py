"""The websocket of a migration as the source's server accepts it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from .protocol import ConnectionLost, short_reason

__all__ = ["AcceptedConnection"]

NORMAL: Final = 1000


class AcceptedConnection:
    """The source's end. The handler that accepted it waits until it is `ended`."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._ended = asyncio.Event()
        self._closed = False

    async def send(self, frame: str | bytes) -> None:
        try:
            if isinstance(frame, str):
                await self._websocket.send_text(frame)
            else:
                await self._websocket.send_bytes(frame)
        except (WebSocketDisconnect, RuntimeError) as error:
            raise ConnectionLost(str(error)) from None

    async def receive(self) -> str | bytes:
        try:
            message = await self._websocket.receive()
        except RuntimeError as error:  # it has ended before
            raise ConnectionLost(str(error)) from None
        if message["type"] != "websocket.receive":
            raise ConnectionLost(message.get("reason") or "")
        text, data = message.get("text"), message.get("bytes")
        return data if data is not None else text or ""

    async def close(self, reason: str) -> None:
        if not self._closed:
            self._closed = True
            try:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await self._websocket.close(NORMAL, short_reason(reason))
            finally:
                self._ended.set()

    def abandon(self) -> None:
        """Let the handler that accepted it close it, because it will not be served."""
        self._ended.set()

    async def ended(self) -> None:
        """Wait until it is closed or abandoned."""
        await self._ended.wait()
