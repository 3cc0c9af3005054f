"""The agent's extensions to the Propolis API of one VM: facts that the API lacks, its display, and how its migrations
transferred memory and disks."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..agent_api.messages import ExtendedInfo
from ..engine.server.app import encoded, error_response
from ..engine.server.dropshot_errors import ErrorResponse
from ..engine.server.guest_port_websocket import serve_guest_port
from ..engine.server.http_error import HttpError
from ..engine.server.server import VmServer

__all__ = ["VmExtensions"]


class VmExtensions:
    """The agent's own paths below ``/vms/{id}``.

    :param find: returns the server of a VM by its id; None if there is no such VM.
    """

    def __init__(self, find: Callable[[str], VmServer | None]) -> None:
        self._find = find

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/vms/{id}", self._facts, methods=["GET"]),
            Route("/vms/{id}/screenshot", self._screenshot, methods=["GET"]),
            Route("/vms/{id}/migrations", self._migrations, methods=["GET"]),
            WebSocketRoute("/vms/{id}/ports/{number:int}", self._port),
        ]

    async def _facts(self, request: Request) -> Response:
        server = self._server(request)
        socket = server.display_socket
        return encoded(
            ExtendedInfo(display_socket=str(socket) if socket else None, panics=server.panics, failure=server.failure)
        )

    async def _screenshot(self, request: Request) -> Response:
        return Response(await self._server(request).screenshot(), media_type="image/png")

    async def _migrations(self, request: Request) -> Response:
        return encoded(self._server(request).migration_report())

    async def _port(self, websocket: WebSocket) -> None:
        try:
            port = self._server(websocket).guest_port(websocket.path_params["number"])
        except HttpError as refusal:
            await websocket.send_denial_response(error_response(refusal.answer))
            return
        await serve_guest_port(websocket, port)

    def _server(self, request: HTTPConnection) -> VmServer:
        server = self._find(request.path_params["id"])
        if server is None:
            raise HttpError(ErrorResponse(status=404, message="no such VM"))
        return server
