"""The connections to a VM's server: one HTTP client, and websockets. Proxies named in the environment are ignored."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import urlencode

from .. import API_VERSION
from .endpoint import Endpoint
from .http import CONNECT_TIMEOUT_S, HttpClient
from .sockets import connect as connect_socket

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = [
    "CLOSE_TIMEOUT_S",
    "CONNECT_TIMEOUT_S",
    "VERSION_HEADERS",
    "WebSocketOpening",
    "http_client",
    "import_websockets",
    "open_websocket",
]

CLOSE_TIMEOUT_S: Final = 2.0
"""How long the closing of a websocket waits for the server's goodbye."""

_VERSION_HEADER: Final = "api-version"
VERSION_HEADERS: Final = {_VERSION_HEADER: API_VERSION}


def http_client(endpoint: Endpoint, *, version: str | None = None) -> HttpClient:
    """Return a client with no connection yet, which costs next to nothing to make.

    :param version: of the API, instead of this client's own.
    """
    return HttpClient(endpoint, headers={_VERSION_HEADER: version} if version else VERSION_HEADERS)


def import_websockets() -> None:
    """Import what opens websockets, which takes some time: for callers that wait for a server in any case."""
    import websockets.asyncio.client  # noqa: F401


async def open_websocket(
    endpoint: Endpoint,
    path: str,
    query: Mapping[str, int],
    *,
    headers: Mapping[str, str] | None = None,
    send_buffer_bytes: int | None = None,
) -> ClientConnection:
    """Return a websocket without compression, pings or a limit on the size of its frames.

    :param send_buffer_bytes: the most that the system may hold of what is sent; None: what it thinks best.
    :raises OSError: TimeoutError among them, when nothing answers.
    :raises websockets.exceptions.InvalidHandshake: when something else than the upgrade is answered.
    """
    from websockets.asyncio.client import connect  # here, because most agents open none

    base = "ws" + endpoint.base_url.removeprefix("http").rstrip("/")
    uri = f"{base}{path}?{urlencode(query)}" if query else base + path
    options: dict[str, Any] = {
        "additional_headers": {**VERSION_HEADERS, **(headers or {})},
        "compression": None,
        "proxy": None,
        "open_timeout": CONNECT_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        # A guest that says nothing for hours is alive all the same, and so is a server too busy for a pong.
        "ping_interval": None,
        "max_size": None,
    }
    if endpoint.tls is not None:
        options["ssl"] = endpoint.tls
    connection = await connect_socket(endpoint, timeout_s=CONNECT_TIMEOUT_S)
    try:
        if send_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        return await connect(uri, sock=connection, **options)
    except BaseException:
        connection.close()
        raise


@final
class WebSocketOpening:
    """A websocket about to be opened: await it for the connection, or enter it to have the connection closed, too.

    :raises ApiError: when the server refuses.
    :raises AgentError: when it cannot be reached.
    """

    __slots__ = ("_connection", "_open")

    def __init__(self, open_connection: Callable[[], Coroutine[Any, Any, ClientConnection]]) -> None:
        self._open = open_connection

    def __await__(self) -> Generator[Any, None, ClientConnection]:
        return self._open().__await__()

    async def __aenter__(self) -> ClientConnection:
        self._connection = await self._open()
        return self._connection

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._connection.close()
