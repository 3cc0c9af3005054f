"""Sockets of this plugin's own: what a test puts in the place of `socket.socket` does not reach them."""

from __future__ import annotations

import asyncio
import os
import socket
from _socket import socketpair as _original_pair
from typing import Final, cast

from .endpoint import Endpoint

__all__ = [
    "abort",
    "address_of",
    "connect",
    "connect_blocking",
    "listen",
    "new_event_loop",
    "reason_of",
    "socket_pair",
    "unix_socket",
]


def _original_socket() -> type[socket.socket]:
    """Return Python's own socket class: what blocks network access in tests is derived from it."""
    for kind in reversed(socket.socket.__mro__):
        if kind.__module__ == "socket" and kind.__name__ == "socket":
            return cast("type[socket.socket]", kind)
    return socket.socket


BACKLOG: Final = 128

_Socket: Final = _original_socket()
_getaddrinfo: Final = socket.getaddrinfo


def unix_socket() -> socket.socket:
    """Return a UNIX stream socket that is not connected."""
    return _Socket(socket.AF_UNIX)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two UNIX stream sockets that are connected with each other."""
    one, other = _original_pair()
    return _Socket(fileno=one.detach()), _Socket(fileno=other.detach())


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop of the process's kind, with separate sockets for its wake-ups."""
    given = socket.socket
    socket.socket = _Socket  # type: ignore[misc]
    try:
        return asyncio.new_event_loop()
    finally:
        socket.socket = given  # type: ignore[misc]


async def connect(endpoint: Endpoint, *, timeout_s: float) -> socket.socket:
    """Return a connected socket that does not block.

    :raises OSError: when nothing listens there; TimeoutError when nothing answers.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        if endpoint.uds:
            return await _connected(_Socket(socket.AF_UNIX), str(endpoint.uds))
        error: OSError | None = None
        host, port = endpoint.host_and_port
        found = await loop.run_in_executor(None, lambda: _getaddrinfo(host, port, type=socket.SOCK_STREAM))
        for family, kind, protocol, _, address in found:
            try:
                return await _connected(_Socket(family, kind, protocol), address)
            except OSError as failure:
                error = failure
        raise error or OSError(f"{host} has no address")


async def _connected(connection: socket.socket, address: object) -> socket.socket:
    try:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, address)  # type: ignore[arg-type]
    except BaseException:
        connection.close()
        raise
    return connection


def connect_blocking(endpoint: Endpoint, *, timeout_s: float) -> socket.socket:
    """Return a connected socket whose operations take at most this long.

    :raises OSError: when nothing listens there; TimeoutError when nothing answers.
    """
    if endpoint.uds is None:
        host, port = endpoint.host_and_port
        family, kind, protocol, _, address = _getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        connection, target = _Socket(family, kind, protocol), cast(object, address)
    else:
        connection, target = _Socket(socket.AF_UNIX), str(endpoint.uds)
    try:
        connection.settimeout(timeout_s)
        connection.connect(target)  # type: ignore[arg-type]
    except BaseException:
        connection.close()
        raise
    return connection


def listen(host: str, port: int = 0) -> socket.socket:
    """Return a TCP socket that listens on an IP address.

    :param port: 0 for one that is free.
    :raises OSError: when that cannot be listened on.
    """
    listener = _Socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Return IP address and port of a TCP socket, as Rust writes a ``SocketAddr``: ``127.0.0.1:80``, ``[::1]:80``."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def abort(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, without sending what waits. No effect if it has ended.

    asyncio's own method raises AttributeError when the connection was closed while data waited, and has ended since.
    """
    try:
        has_tls = transport.get_extra_info("sslcontext") is not None  # its end takes a round trip after it was closed
    except AttributeError:
        return  # one with TLS that was closed twice: asyncio no longer knows it
    if has_tls or not transport.is_closing() or transport.get_write_buffer_size():
        transport.abort()


def reason_of(error: OSError) -> str:
    """Return why something did not work, in the operating system's words: asyncio has its own for some of them."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
