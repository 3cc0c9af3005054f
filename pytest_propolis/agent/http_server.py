"""The HTTP server of an agent, and of a server program: uvicorn, whose caller has its own signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState

from ..propolis_api.connection.http_protocol import CoalescingProtocol
from ..propolis_api.connection.websocket_protocol import DetachableProtocol

__all__ = ["Certificate", "Connections", "http_server"]

TICKS_PER_S: Final = 10
"""The number of ticks that uvicorn's `on_tick` counts as a second."""

GRACE_S: Final = 1.0
LOOK_S: Final = 0.002


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """The certificate and key of a server.

    :param chain: a file with the certificate, and those that lead to its authority.
    :param key: the file of the certificate's private key.
    """

    chain: Path
    key: Path


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and without its pauses: it looks ten times a second whether it should exit,
    and waits for another tenth of a second when it does, while the end of a run waits for it."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._exit = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Whether to shut down; set it in the server's event loop."""
        return self._exit.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._exit.set()

    async def main_loop(self) -> None:
        """Serve until shutdown is requested. The header ``date`` is renewed every second."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += TICKS_PER_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._exit.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and end the existing ones, at the latest after `GRACE_S`."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            with contextlib.suppress(InvalidState):  # a websocket that is being closed already
                connection.shutdown()
        deadline = time.monotonic() + GRACE_S
        while (state.connections or state.tasks) and time.monotonic() < deadline:  # noqa: ASYNC110 - sets of uvicorn's
            await asyncio.sleep(LOOK_S)
        for task in state.tasks:
            task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp, certificate: Certificate | None = None) -> uvicorn.Server:
    """Return a server for an application, which serves once `serve` is called with its sockets.

    :param certificate: serve with TLS.
    """
    return _Server(_config(app, certificate))


class Connections:
    """The connections of a listener that the caller has opened.

    :param app: the application that they serve.
    :param buffer_bytes: how much of what is sent a connection holds back before its sender waits.
    """

    def __init__(self, app: ASGIApp, *, buffer_bytes: int) -> None:
        self._config = _config(app)
        self._config.load()
        self._state = ServerState()
        self._buffer_bytes = buffer_bytes

    def protocol(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return _BufferedProtocol(self._buffer_bytes, self._config, self._state, {})

    def close(self) -> None:
        """End all connections, and what they ask for."""
        for connection in list(self._state.connections):
            with contextlib.suppress(InvalidState):  # a websocket that is being closed already
                connection.shutdown()
        for task in self._state.tasks:
            task.cancel()


class _BufferedProtocol(CoalescingProtocol):
    def __init__(
        self, buffer_bytes: int, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._buffer_bytes = buffer_bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as H11Protocol's
        transport.set_write_buffer_limits(high=self._buffer_bytes)
        super().connection_made(transport)


def _config(app: ASGIApp, certificate: Certificate | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        interface="asgi3",
        lifespan="off",
        http=CoalescingProtocol,
        ws=DetachableProtocol,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        ssl_certfile=certificate.chain if certificate else None,
        ssl_keyfile=certificate.key if certificate else None,
    )
