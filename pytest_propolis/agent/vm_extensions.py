"""The agent's extensions to the Propolis API of one VM: facts that the API lacks, its display, its log, and how its
migrations transferred memory and disks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..agent_api.messages import ExtendedInfo
from ..agent_api.networks import ForwardPort, PortForwarded
from ..engine.server.app import decoded, encoded, error_response, serial_position
from ..engine.server.dropshot_errors import ErrorResponse, HttpError
from ..engine.server.guest_port_websocket import serve_guest_port
from ..engine.server.serial_websocket import serve_serial
from ..engine.server.server import VmServer
from .client_resources import OwnedVm

__all__ = ["VmExtensions"]

LOG_BYTES: Final = 1 << 20


class VmExtensions:
    """The agent's own paths below ``/vms/{id}``.

    They are the engine's: of a VM whose server is a program of its own, there is the log alone.

    :param find: returns a VM by its id; None if there is no such VM.
    """

    def __init__(self, find: Callable[[str], OwnedVm | None]) -> None:
        self._find = find

    @property
    def routes(self) -> list[BaseRoute]:
        return [
            Route("/vms/{id}", self._facts, methods=["GET"]),
            Route("/vms/{id}/screenshot", self._screenshot, methods=["GET"]),
            Route("/vms/{id}/migrations", self._migrations, methods=["GET"]),
            WebSocketRoute("/vms/{id}/ports/{number:int}", self._port),
            WebSocketRoute("/vms/{id}/com2", self._second_serial),
            Route("/vms/{id}/log", self._log, methods=["GET"]),
            Route("/vms/{id}/forwards", self._forward, methods=["POST"]),
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

    async def _second_serial(self, websocket: WebSocket) -> None:
        try:
            port, position = self._server(websocket).second_serial(), serial_position(websocket.query_params)
        except HttpError as refusal:
            await websocket.send_denial_response(error_response(refusal.answer))
            return
        await websocket.accept()
        await serve_serial(websocket, port, port.history.offset_of(**position))

    async def _log(self, request: Request) -> Response:
        """Return the end of the output of QEMU or of the server."""
        try:
            text = await asyncio.to_thread(_end_of, self._vm(request).server.log_path)
        except FileNotFoundError:
            text = b""
        return Response(text, media_type="text/plain")

    async def _forward(self, request: Request) -> Response:
        message = await decoded(request, ForwardPort)
        return encoded(PortForwarded(port=await self._server(request).forward(message.guest_port)), 201)

    def _vm(self, request: HTTPConnection) -> OwnedVm:
        vm = self._find(request.path_params["id"])
        if vm is None:
            raise HttpError(ErrorResponse(status=404, message="no such VM"))
        return vm

    def _server(self, request: HTTPConnection) -> VmServer:
        server = self._vm(request).engine
        if server is None:
            raise HttpError(ErrorResponse(status=404, message="the engine has no such VM"))
        return server


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
        return file.read()
