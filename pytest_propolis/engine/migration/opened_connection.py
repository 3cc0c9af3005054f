"""The websocket of a migration as the target opens it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from websockets.exceptions import ConnectionClosed, WebSocketException

from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.transport import open_websocket
from .failure import MigrationFailed
from .protocol import ConnectionLost, short_reason

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["OpenedConnection"]


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
        await self._connection.close(reason=short_reason(reason))

    def abandon(self) -> None:
        self._connection.transport.abort()


def _reason(error: ConnectionClosed) -> str:
    return error.rcvd.reason if error.rcvd else ""
