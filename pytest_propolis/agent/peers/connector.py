"""A local socket that leads to the agent of another host, over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from ...errors import AgentError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.http import HttpClient
from ...propolis_api.connection.sockets import abort, connect, reason_of
from .limits import BUFFER_BYTES, detect_loss

__all__ = ["PeerConnector"]

CONNECT_TIMEOUT_S: Final = 3.0
"""Hosts that do not reach each other mostly drop packets silently."""

FLUSH_TIMEOUT_S: Final = 10.0
"""How long a client may take to read the rest, once the other host's connection has ended."""


class PeerConnector:
    """Connects each client of a UNIX socket with another agent.

    :param address: an IP address of the other host.
    :param port: of its `PeerListener`.
    :param path: of the socket; in a private directory.
    """

    def __init__(self, address: str, port: int, context: ssl.SSLContext, *, path: Path) -> None:
        self.path = path
        host = f"[{address}]" if ":" in address else address
        self.endpoint = Endpoint(base_url=f"https://{host}:{port}", tls=context)
        """The other agent's."""
        self._context = context
        self._server: asyncio.Server | None = None
        self._work: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Check that the other agent answers, and listen.

        :raises AgentError: when it does not answer, or the socket cannot be made.
        """
        try:
            await self._check()
            self._server = await asyncio.get_running_loop().create_unix_server(self._accept, self.path)
            self.path.chmod(0o600)
        except OSError as error:  # TimeoutError and ssl.SSLError among them
            reason = f"nothing within {CONNECT_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else reason_of(error)
            raise AgentError(f"{self.endpoint.base_url} does not answer: {reason}") from None

    def abort(self) -> None:
        """Accept no more connections, and end the existing ones soon. Idempotent."""
        if self._server is not None:
            self._server.close()
        for task in self._work:
            task.cancel()
        self.path.unlink(missing_ok=True)

    async def close(self) -> None:
        """As `abort`, and wait until all connections have ended."""
        self.abort()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _check(self) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S), HttpClient(self.endpoint, headers={}) as client:
            await client.request("GET", "/", timeout_s=CONNECT_TIMEOUT_S)  # any status is an answer

    def _accept(self) -> _End:
        """Return the protocol of a new client."""
        return _End(on_made=self._serve)

    def _serve(self, local: _End) -> None:
        task = asyncio.create_task(self._relay(local))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _relay(self, local: _End) -> None:
        """Connect a client, until either connection ends; then end both."""
        try:
            with contextlib.suppress(OSError):
                remote = await self._connect()
                try:
                    local.join(remote)
                    await asyncio.wait([local.ended, remote.ended], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    abort(remote.transport)
                local.transport.close()  # what has come is still for the client
                await asyncio.wait([local.ended], timeout=FLUSH_TIMEOUT_S)
        finally:
            abort(local.transport)

    async def _connect(self) -> _End:
        connection = await connect(self.endpoint, timeout_s=CONNECT_TIMEOUT_S)
        try:
            detect_loss(connection)
            _, end = await asyncio.get_running_loop().create_connection(
                _End, sock=connection, ssl=self._context, server_hostname=""
            )
        except BaseException:
            connection.close()
            raise
        return end


class _End(asyncio.Protocol):
    """One of two connections of which each passes on what comes to the other one, no faster than that takes it.

    What comes before they are joined is kept: that a transport was paused as it was made does not hold in asyncio.

    :param on_made: called with this when it is connected.
    """

    transport: asyncio.Transport

    def __init__(self, on_made: Callable[[_End], None] = lambda end: None) -> None:
        self._on_made = on_made
        self._other: _End | None = None
        self._early: list[bytes] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def join(self, other: _End) -> None:
        """Begin to pass on what comes to either."""
        for one, another in ((self, other), (other, self)):
            one._other = another
            one.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        for end in (self, other):
            for data in end._early:
                end.data_received(data)
            if not end.transport.is_closing():
                end.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
            self.transport.pause_reading()
        elif not self._other.transport.is_closing():
            self._other.transport.write(data)

    def pause_writing(self) -> None:
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
