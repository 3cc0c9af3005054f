"""The connections to a VM's server: one HTTP client, and websockets. Proxies named in the environment are ignored."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Coroutine, Generator, Mapping
from functools import cache
from types import TracebackType
from typing import Any, Final, final
from urllib.parse import urlencode

import httpx
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from . import API_VERSION
from .endpoint import Endpoint

__all__ = ["CLOSE_TIMEOUT_S", "CONNECT_TIMEOUT_S", "WebSocketOpening", "http_client", "open_websocket"]

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
"""How long the closing of a websocket waits for the server's goodbye."""

# Servers drop idle connections after 5 s or more. A client that lets go earlier never writes into one being dropped.
_KEEPALIVE_S: Final = 2.0

_HEADERS: Final = {"api-version": API_VERSION}


def http_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """A client with no connection yet, any number allowed, which costs next to nothing to make unless it is for TLS."""
    transport = httpx.AsyncHTTPTransport(
        uds=str(endpoint.uds) if endpoint.uds else None,
        verify=True if endpoint.base_url.startswith("https:") else _unused_tls(),
        trust_env=False,
        limits=httpx.Limits(keepalive_expiry=_KEEPALIVE_S),
    )
    return httpx.AsyncClient(base_url=endpoint.base_url, headers=_HEADERS, transport=transport, trust_env=False)


@cache
def _unused_tls() -> ssl.SSLContext:
    # httpx wants a context where there is no TLS, too, and reads a file of certificates for it: 17 ms per client.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def open_websocket(
    endpoint: Endpoint, path: str, query: Mapping[str, int], *, headers: Mapping[str, str] | None = None
) -> ClientConnection:
    """A websocket without compression, pings or a limit on the size of its frames.

    :raises OSError: TimeoutError among them, when nothing answers.
    :raises websockets.exceptions.InvalidHandshake: when something else than the upgrade is answered.
    """
    base = "ws" + endpoint.base_url.removeprefix("http").rstrip("/")
    uri = f"{base}{path}?{urlencode(query)}" if query else base + path
    options: dict[str, Any] = {
        "additional_headers": {**_HEADERS, **(headers or {})},
        "compression": None,
        "proxy": None,
        "open_timeout": CONNECT_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        # A guest that says nothing for hours is alive all the same, and so is a server too busy for a pong.
        "ping_interval": None,
        "max_size": None,
    }
    if endpoint.uds:
        return await unix_connect(str(endpoint.uds), uri, **options)
    return await connect(uri, **options)


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
