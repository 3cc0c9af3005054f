"""The agent's paths for networks between VMs: below ``/networks``."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from ...agent_api.networks import (
    AddPort,
    ConnectNetworks,
    CreateNetwork,
    MovePort,
    NetworkCreated,
    NetworkFaults,
    PortAdded,
)
from ...engine.server.app import decoded, encoded
from ...engine.server.dropshot_errors import ErrorResponse, HttpError
from .networks import Network, Networks

__all__ = ["NetworkRoutes"]


class NetworkRoutes:
    """
    :param client: returns the client that sent a request, which has a lifeline.
    """

    def __init__(self, networks: Networks, client: Callable[[Request], str]) -> None:
        self._networks = networks
        self._client = client

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/networks", self._create, methods=["POST"]),
            Route("/networks/{id}", self._remove, methods=["DELETE"]),
            Route("/networks/{id}/ports", self._add_port, methods=["POST"]),
            Route("/networks/{id}/ports/{number:int}", self._move_port, methods=["PUT"]),
            Route("/networks/{id}/faults", self._order, methods=["PUT"]),
            Route("/networks/{id}/trunks", self._connect, methods=["POST"]),
            Route("/networks/{id}/capture", self._capture, methods=["GET"]),
            WebSocketRoute("/networks/{id}/trunk", self._accept),
        ]

    async def _create(self, request: Request) -> Response:
        network = self._networks.create(self._client(request), await decoded(request, CreateNetwork))
        return encoded(NetworkCreated(id=network.id), 201)

    async def _remove(self, request: Request) -> Response:
        await self._networks.remove(request.path_params["id"])
        return Response(status_code=204)

    async def _add_port(self, request: Request) -> Response:
        path = await self._find(request).add_port(await decoded(request, AddPort))
        return encoded(PortAdded(path=str(path)), 201)

    async def _move_port(self, request: Request) -> Response:
        self._find(request).move_port(request.path_params["number"], await decoded(request, MovePort))
        return Response(status_code=204)

    async def _order(self, request: Request) -> Response:
        self._find(request).order(await decoded(request, NetworkFaults))
        return Response(status_code=204)

    async def _connect(self, request: Request) -> Response:
        await self._find(request).connect(await decoded(request, ConnectNetworks))
        return Response(status_code=204)

    async def _capture(self, request: Request) -> Response:
        return Response(self._find(request).switch.capture.pcap(), media_type="application/vnd.tcpdump.pcap")

    async def _accept(self, websocket: WebSocket) -> None:
        network = self._networks.find(websocket.path_params["id"])
        if network is None:
            await websocket.close()
            return
        await websocket.accept()
        await network.accept(websocket)

    def _find(self, request: Request) -> Network:
        network = self._networks.find(request.path_params["id"])
        if network is None:
            raise HttpError(ErrorResponse(status=404, message="no such network"))
        return network
