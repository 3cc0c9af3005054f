"""A local socket that leads to the agent of another host, over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Final

from ...errors import AgentError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.http import HttpClient
from ...propolis_api.connection.sockets import abort, connect, reason_of
from .limits import BUFFER_BYTES, detect_loss

__all__ = ["PeerConnector"]

CONNECT_TIMEOUT_S: Final = 3.0
"""Hosts that do not reach each other mostly drop packets silently."""

CHUNK_BYTES: Final = 1 << 18

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class PeerConnector:
    """Connects each client of a UNIX socket with another agent.

    :param address: an IP address of the other host.
    :param port: of its `PeerListener`.
    :param path: of the socket; in a private directory.
    """

    def __init__(self, address: str, port: int, context: ssl.SSLContext, *, path: Path) -> None:
        self.path = path
        host = f"[{address}]" if ":" in address else address
        self._endpoint = Endpoint(base_url=f"https://{host}:{port}", tls=context)
        self._context = context
        self._server: asyncio.Server | None = None
        self._work: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Check that the other agent answers, and listen.

        :raises AgentError: when it does not answer, or the socket cannot be made.
        """
        try:
            await self._check()
            self._server = await asyncio.start_unix_server(self._serve, self.path, limit=CHUNK_BYTES)
            self.path.chmod(0o600)
        except OSError as error:  # TimeoutError and ssl.SSLError among them
            reason = f"nothing within {CONNECT_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else reason_of(error)
            raise AgentError(f"{self._endpoint.base_url} does not answer: {reason}") from None

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
        async with asyncio.timeout(CONNECT_TIMEOUT_S), HttpClient(self._endpoint, headers={}) as client:
            await client.request("GET", "/", timeout_s=CONNECT_TIMEOUT_S)  # any status is an answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._work.add(task)
        try:
            with contextlib.suppress(OSError):
                await _relay((reader, writer), await self._connect())
        finally:
            self._work.discard(task)
            abort(writer.transport)

    async def _connect(self) -> Ends:
        connection = await connect(self._endpoint, timeout_s=CONNECT_TIMEOUT_S)
        try:
            detect_loss(connection)
            return await asyncio.open_connection(
                sock=connection, ssl=self._context, server_hostname="", limit=CHUNK_BYTES
            )
        except BaseException:
            connection.close()
            raise


async def _relay(one: Ends, other: Ends) -> None:
    """Relay between two connections, until either ends; then end both."""
    for _, writer in (one, other):
        writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
    directions = [asyncio.create_task(_forward(one[0], other[1])), asyncio.create_task(_forward(other[0], one[1]))]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
        for _, writer in (one, other):
            writer.close()
        abort(other[1].transport)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
