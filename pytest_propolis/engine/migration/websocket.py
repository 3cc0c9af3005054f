"""The websocket of a migration: as the source's server accepts it, and as the target opens it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final
from uuid import UUID

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.transport import open_websocket
from .failure import MigrationFailed
from .protocol import ConnectionLost

__all__ = ["AcceptedConnection", "OpenedConnection"]

NORMAL: Final = 1000
REASON_BYTES: Final = 120  # a close frame has room for 123


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
                    await self._websocket.close(NORMAL, _short(reason))
            finally:
                self._ended.set()

    def abandon(self) -> None:
        """Let the handler that accepted it close it, because it will not be served."""
        self._ended.set()

    async def ended(self) -> None:
        """Wait until it is closed or abandoned."""
        await self._ended.wait()


class OpenedConnection:
    """The target's end."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def to(cls, address: str, migration_id: UUID, path: str = "start") -> OpenedConnection:
        """Request the source's VM, or a stream of a migration in progress.

        :param address: as in `FromMigration.src_addr`.
        :param path: below that of the migration.
        :raises MigrationFailed: when it does not answer, or refuses.
        """
        try:
            endpoint = Endpoint.at(address)
            return cls(await open_websocket(endpoint, f"/instance/migrate/{migration_id}/{path}", {}))
        except (OSError, EOFError, WebSocketException, ValueError) as error:
            raise MigrationFailed(f"the source {address} cannot be reached: {error or type(error).__name__}") from None

    async def send(self, frame: str | bytes) -> None:
        try:
            await self._connection.send(frame)
        except ConnectionClosed as error:
            raise ConnectionLost(_reason(error)) from None

    async def receive(self) -> str | bytes:
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise ConnectionLost(_reason(error)) from None

    async def close(self, reason: str) -> None:
        await self._connection.close(reason=_short(reason))

    def abandon(self) -> None:
        self._connection.transport.abort()


def _reason(error: ConnectionClosed) -> str:
    return error.rcvd.reason if error.rcvd else ""


def _short(reason: str) -> str:
    return reason.encode()[:REASON_BYTES].decode(errors="ignore")
