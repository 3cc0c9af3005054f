"""The direct connections of an agent with those of other hosts, by client, and its paths for them: below ``/peers``."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from ...agent_api.messages import AcceptPeer, ConnectPeer, PeerAccepted, PeerConnected
from ...engine.server.app import decoded, encoded
from ...errors import AgentError
from ...ledger.entry import Entry
from ...ledger.writer import LedgerWriter
from ...propolis_api.connection.endpoint import Endpoint
from .connector import PeerConnector
from .credentials import client_context, server_context
from .listener import PeerListener

__all__ = ["Peers"]


class _Connected(msgspec.Struct):
    connector: PeerConnector
    writer: LedgerWriter
    entry: Entry


@dataclass(slots=True)
class _OfClient:
    listeners: list[PeerListener] = field(default_factory=list)
    connected: list[_Connected] = field(default_factory=list)


class Peers:
    """Opens and accepts connections with other agents for clients, and ends them with their client.

    :param directory: the agent's.
    :param app: the agent's application, which other agents are served.
    :param writer: returns what records the sockets of a client.
    :param client: returns the client that sent a request, which has a lifeline.
    """

    def __init__(
        self,
        directory: Path,
        *,
        app: ASGIApp,
        writer: Callable[[str], LedgerWriter],
        client: Callable[[Request], str],
    ) -> None:
        self._directory = directory
        self._app = app
        self._writer = writer
        self._client = client
        self._clients: dict[str, _OfClient] = {}

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/peers/accepted", self._accept, methods=["POST"]),
            Route("/peers/connected", self._connect, methods=["POST"]),
        ]

    def shortcut(self, endpoint: Endpoint) -> Endpoint:
        """Return the other agent's endpoint for that of a socket that leads there, and any other as it is."""
        for owned in self._clients.values():
            for connected in owned.connected:
                if connected.connector.path == endpoint.uds:
                    return connected.connector.endpoint
        return endpoint

    async def release_all_but(self, stays: Callable[[str], bool]) -> None:
        """End the connections of all clients that do not stay."""
        for client in [client for client in self._clients if not stays(client)]:
            await self._release(client)

    async def _release(self, client: str) -> None:
        owned = self._clients.pop(client, _OfClient())
        for listener in owned.listeners:
            listener.close()
        for connected in owned.connected:
            await connected.connector.close()
            connected.writer.gone(connected.entry)

    async def close(self) -> None:
        """End all connections."""
        await self.release_all_but(lambda _client: False)

    async def _accept(self, request: Request) -> Response:
        client, wanted = self._client(request), await decoded(request, AcceptPeer)
        listener = PeerListener(self._app, server_context(wanted.identity, self._directory))
        await listener.open()
        self._require_present(request, listener.close)
        self._clients.setdefault(client, _OfClient()).listeners.append(listener)
        return encoded(PeerAccepted(address=listener.address, port=listener.port), 201)

    async def _connect(self, request: Request) -> Response:
        client, wanted = self._client(request), await decoded(request, ConnectPeer)
        context = client_context(wanted.identity, self._directory)
        path = self._directory / f"direct-{secrets.token_hex(4)}.sock"
        writer = self._writer(client)
        connector = PeerConnector(wanted.address, wanted.port, context, path=path)
        with writer.creating("socket", path) as entry:
            await connector.open()
            self._require_present(request, connector.abort)
        owned = self._clients.setdefault(client, _OfClient())
        owned.connected.append(_Connected(connector, writer, entry))
        return encoded(PeerConnected(path=str(path)), 201)

    def _require_present(self, request: Request, undo: Callable[[], None]) -> None:
        """
        :raises AgentError: when the client has left meanwhile; what was opened for it is closed then.
        """
        try:
            self._client(request)
        except AgentError:
            undo()
            raise
