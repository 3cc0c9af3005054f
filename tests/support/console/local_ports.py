"""Guest ports without a guest: sockets that a local shell inherits, each behind the engine's own websocket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from pytest_propolis.agent.http_server import http_server
from pytest_propolis.agent_api.guest_ports import ERRORS_PORT, INTERRUPT_PORT, SHELL_PORT
from pytest_propolis.engine.qemu.guest_ports import GuestPort
from pytest_propolis.engine.server.guest_port_websocket import serve_guest_port
from pytest_propolis.propolis_api.connection.byte_stream import ByteStream, open_byte_stream
from pytest_propolis.propolis_api.connection.endpoint import Endpoint

__all__ = ["LocalPorts", "local_ports"]

DESCRIPTORS = {SHELL_PORT: 3, INTERRUPT_PORT: 4, ERRORS_PORT: 5}
"""What the shell knows the ports by."""


class LocalPorts:
    """The `Ports` of a local shell."""

    moves = 0

    def __init__(self, place: Path) -> None:
        self._place = place
        self.ports = {number: GuestPort() for number in DESCRIPTORS}
        for port in self.ports.values():
            port.qemu_end.setblocking(True)

    @property
    def inherited(self) -> Mapping[int, int]:
        """The descriptors that the shell must inherit."""
        return {DESCRIPTORS[number]: port.qemu_end.fileno() for number, port in self.ports.items()}

    async def connect(self, number: int) -> ByteStream:
        return await open_byte_stream(Endpoint(base_url="http://local", uds=self._place), f"/ports/{number}")

    async def moved_since(self, moves: int) -> None:
        await asyncio.Event().wait()

    def open_script(self, descriptors: Mapping[int, int]) -> str:
        return "; ".join(
            f"command exec {descriptor}<&{DESCRIPTORS[number]} {DESCRIPTORS[number]}<&- || exit"
            for number, descriptor in descriptors.items()
        )

    async def serve(self, websocket: WebSocket) -> None:
        await serve_guest_port(websocket, self.ports[websocket.path_params["number"]])


@contextlib.asynccontextmanager
async def local_ports(directory: Path) -> AsyncIterator[LocalPorts]:
    """Ports for a shell that is started in the block."""
    place = directory / "ports.sock"
    ports = LocalPorts(place)
    app = Starlette(routes=[WebSocketRoute("/ports/{number:int}", ports.serve)])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        server = http_server(app)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield ports
        finally:
            for port in ports.ports.values():
                port.close()
            server.should_exit = True
            await serving
