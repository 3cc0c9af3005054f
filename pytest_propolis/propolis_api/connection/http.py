"""HTTP to servers of the Propolis API and to agents.

Not over httpx's client: libraries that fake a user's HTTP traffic take the place of its methods and of its pools, block
sockets, and record what passes. This plugin's control connections are none of that traffic, and in no user's logs.
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self
from urllib.parse import urlencode, urlsplit

import h11
import msgspec

from .endpoint import Endpoint
from .sockets import connect, connect_blocking

__all__ = ["HttpAnswer", "HttpClient", "HttpStream", "request"]

CONNECT_TIMEOUT_S: Final = 5.0

# Servers drop idle connections after 5 s or more. A client that lets go earlier never writes into one being dropped.
_KEEPALIVE_S: Final = 2.0

_READ_BYTES: Final = 1 << 16

Headers = Sequence[tuple[str, str]]


class HttpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer with its whole body."""

    status: int
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class HttpClient:
    """A client of one server, in one event loop: any number of requests at once, over connections that are kept.

    Making one connects to nothing. Every request raises `OSError` when there is no answer: `TimeoutError` when the
    server is silent, `ConnectionError` when it ends the connection or does not speak HTTP.

    :param headers: sent with every request.
    """

    def __init__(self, endpoint: Endpoint, *, headers: Mapping[str, str]) -> None:
        self.endpoint = endpoint
        parts = urlsplit(endpoint.base_url)
        self._path = parts.path.rstrip("/")
        self._headers = [("host", parts.netloc), *headers.items()]
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections that are kept. Idempotent."""
        while self._idle:
            self._idle.pop().close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, int] | None = None,
        content: bytes | None = None,
        timeout_s: float | None,
    ) -> HttpAnswer:
        """Ask, and read the whole answer.

        :param content: a body of JSON.
        :param timeout_s: how long the server may be silent; None: forever.
        """
        async with self.stream(method, path, query=query, content=content, timeout_s=timeout_s) as answer:
            return HttpAnswer(status=answer.status, content=b"".join([data async for data in answer.data()]))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, int] | None = None,
        content: bytes | None = None,
        timeout_s: float | None,
    ) -> AsyncIterator[HttpStream]:
        """Send a request, and read the response inside the block as it arrives.

        A response that is not read to its end closes the connection.
        """
        target = (f"{self._path}{path}" or "/") + (f"?{urlencode(query)}" if query else "")
        question = _question(method, target, self._headers, content)
        connection = self._kept() or await _Connection.open(self.endpoint)
        answer = HttpStream(connection, timeout_s)
        try:
            await answer.ask(question, content)
            yield answer
        finally:
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.renew():
                return connection
            connection.close()
        return None


class HttpStream:
    """A response whose body was not read yet."""

    status: int

    def __init__(self, connection: _Connection, timeout_s: float | None) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    async def ask(self, question: h11.Request, content: bytes | None) -> None:
        """Send the request, and wait for the head of the answer."""
        self._connection.send(question, content)
        async with asyncio.timeout(self._timeout_s):
            event = await self._connection.receive()
            while isinstance(event, h11.InformationalResponse):
                event = await self._connection.receive()
        assert isinstance(event, h11.Response)
        self.status = event.status_code

    def close(self) -> None:
        """Close the connection: what reads the answer gets a ConnectionError. Idempotent."""
        self._connection.close()

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces as they arrive."""
        while True:
            async with asyncio.timeout(self._timeout_s):
                event = await self._connection.receive()
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the body, by lines without their ends."""
        rest = b""
        async for data in self.data():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line
        if rest:
            yield rest


class _Connection:
    """One connection, and what h11 knows of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = h11.Connection(h11.CLIENT)
        self._used_s = time.monotonic()

    @classmethod
    async def open(cls, endpoint: Endpoint) -> _Connection:
        connection = await connect(endpoint, timeout_s=CONNECT_TIMEOUT_S)
        secure = endpoint.base_url.startswith("https:")
        try:
            if endpoint.uds:
                return cls(*await asyncio.open_unix_connection(sock=connection))
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return cls(
                    *await asyncio.open_connection(
                        sock=connection,
                        ssl=(endpoint.tls or ssl.create_default_context()) if secure else None,
                        server_hostname=endpoint.host_and_port[0] if secure else None,
                    )
                )
        except BaseException:
            connection.close()
            raise

    def send(self, question: h11.Request, content: bytes | None) -> None:
        data = self._protocol.send(question) or b""
        if content:
            data += self._protocol.send(h11.Data(data=content)) or b""
        self._writer.write(data + (self._protocol.send(h11.EndOfMessage()) or b""))

    async def receive(self) -> object:
        """Return the next event.

        :raises ConnectionError: when the server has ended the connection, or does not speak HTTP.
        """
        try:
            while (event := self._protocol.next_event()) is h11.NEED_DATA:
                self._protocol.receive_data(await self._reader.read(_READ_BYTES))
        except h11.RemoteProtocolError as error:
            raise ConnectionError(str(error)) from error
        return event

    @property
    def is_reusable(self) -> bool:
        return self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE

    def renew(self) -> bool:
        """Prepare for the next request; False if the server has ended the connection, or may just be about to."""
        if time.monotonic() - self._used_s > _KEEPALIVE_S or self._is_readable():
            return False
        self._protocol.start_next_cycle()
        self._used_s = time.monotonic()
        return True

    def close(self) -> None:
        self._writer.close()

    def _is_readable(self) -> bool:
        """Return whether something came that was not asked for: the end of the connection."""
        if self._reader.at_eof():
            return True
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))


def request(
    endpoint: Endpoint,
    method: str,
    path: str,
    *,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> HttpAnswer:
    """Send a request without an event loop, over a new connection.

    :raises OSError: when there is no answer: TimeoutError, ConnectionError among them.
    """
    parts = urlsplit(endpoint.base_url)
    named = [("host", parts.netloc), ("connection", "close"), *(headers or {}).items()]
    protocol = h11.Connection(h11.CLIENT)
    with connect_blocking(endpoint, timeout_s=timeout_s) as connection:
        sent = protocol.send(_question(method, f"{parts.path.rstrip('/')}{path}", named, content)) or b""
        if content:
            sent += protocol.send(h11.Data(data=content)) or b""
        connection.sendall(sent + (protocol.send(h11.EndOfMessage()) or b""))
        status, body = 0, bytearray()
        try:
            while not isinstance(event := protocol.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    protocol.receive_data(connection.recv(_READ_BYTES))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
        except h11.RemoteProtocolError as error:
            raise ConnectionError(str(error)) from error
    return HttpAnswer(status=status, content=bytes(body))


def _question(method: str, target: str, headers: Headers, content: bytes | None) -> h11.Request:
    body: Headers = ()
    if content is not None:
        body = (("content-type", "application/json"), ("content-length", str(len(content))))
    elif method in ("POST", "PUT", "PATCH"):
        body = (("content-length", "0"),)
    return h11.Request(method=method, target=target, headers=[*headers, *body])
