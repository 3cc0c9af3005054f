"""A websocket whose binary messages are one stream of bytes.

A guest's port is one: where its messages begin and end means nothing. So pieces are passed on as they arrive, with few
steps for each: the round trip of a command passes four of them. The first steps of each side are its handshake's.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import deque
from collections.abc import Callable
from typing import Final

from .endpoint import Endpoint
from .sockets import abort, connect
from .transport import CONNECT_TIMEOUT_S, VERSION_HEADERS

__all__ = ["ByteStream", "StreamEnded", "StreamRefused", "open_byte_stream"]

QUEUED_BYTES: Final = 1 << 20
"""How much may have come that nothing has read, before no more is read from the socket."""

CLOSE_TIMEOUT_S: Final = 5.0
"""How long the other side may take to read a close frame."""

LARGE_BYTES: Final = 1 << 14
HEAD_BYTES: Final = 1 << 16

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA


class StreamEnded(Exception):
    """Raised when a stream is used that has ended."""


class StreamRefused(Exception):
    """Raised when a server answers a handshake with another status than 101.

    :param status: the HTTP status; 0 if the answer is not HTTP.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class ByteStream(asyncio.Protocol):
    """One side of the websocket, after the handshake.

    :param is_client: whether frames are masked, as those of clients have to be. The mask is zero: there is no proxy
        between, whom a random one would protect (RFC 6455, 10.3).
    """

    def __init__(self, *, is_client: bool) -> None:
        self._is_client = is_client
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None
        self._head = b""
        """The beginning of a frame's header."""
        self._opcode = BINARY
        self._left = 0
        """How much of the current frame's payload is to come."""
        self._mask: bytes | None = None
        self._control = bytearray()
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._reader: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.text: str | None = None
        """The last text message."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done at the end of the connection, or when the other side has sent a close frame."""
        self.on_data: Callable[[bytes], None] = self._keep
        """Called with each piece that comes."""
        self.on_writable: Callable[[bool], None] | None = None
        """Called when the system takes no more of what is written, and when it does again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()
        if self.on_writable is not None:
            self.on_writable(False)

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
        if self.on_writable is not None:
            self.on_writable(True)

    def data_received(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        position, size = 0, len(data)
        while position < size:
            if not self._left:
                payload = self._begin_frame(data, position)
                if not payload:
                    self._head = data[position:]
                    return
                position = payload
            piece = data[position : position + self._left]
            position += len(piece)
            self._left -= len(piece)
            self._take(piece)

    def listen(self, on_data: Callable[[bytes], None]) -> None:
        """Pass what comes to a function from now on, instead of `receive`."""
        self.on_data = on_data
        while self._queue:
            on_data(self._queue.popleft())
        self._queued = 0
        self.resume_reading()

    def write(self, data: bytes | memoryview) -> None:
        """Write, and let the system or memory hold it."""
        self._write_frame(BINARY, data)

    async def send(self, data: bytes | memoryview) -> None:
        """Write, and wait while the system takes no more.

        :raises StreamEnded: when the connection has ended.
        """
        if self.ended.done():
            raise StreamEnded
        self._write_frame(BINARY, data)
        if self._writable is not None:
            await asyncio.wait([self._writable, self.ended], return_when=asyncio.FIRST_COMPLETED)

    async def receive(self) -> bytes:
        """Return what has come; wait if nothing has.

        :raises StreamEnded: when the connection has ended, and all was read.
        """
        while not self._queue:
            if self.ended.done():
                raise StreamEnded
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        piece = self._queue.popleft()
        self._queued -= len(piece)
        if self._queued < QUEUED_BYTES:
            self.resume_reading()
        return piece

    def pause_reading(self) -> None:
        """Read nothing from the other side until `resume_reading`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read from the other side again. No effect if it is read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def close(self, code: int, text: str, reason: str) -> None:
        """Send a last text message and a close frame, and wait until the other side has ended the connection.

        If this side did that, the other one could lose both: its system refuses what it writes then, and it stops
        reading.
        """
        self._write_frame(TEXT, text.encode())
        self._write_frame(CLOSE, code.to_bytes(2, "big") + reason.encode())
        self._end()
        self.listen(lambda _data: None)
        await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT_S)
        self.abort()

    def abort(self) -> None:
        """End the connection; what waits to be sent is dropped."""
        if self._transport is not None:
            abort(self._transport)
        self._end()

    def _begin_frame(self, data: bytes, start: int) -> int:
        """Read the header of a frame; return where its payload begins, or 0 if a part of the header is missing."""
        if len(data) < start + 2:
            return 0
        first, second = data[start], data[start + 1]
        size, length = second & 0x7F, 2
        extended = {126: 2, 127: 8}.get(size, 0)
        masked = 4 if second & 0x80 else 0
        if len(data) < start + length + extended + masked:
            return 0
        if extended:
            size = int.from_bytes(data[start + 2 : start + 2 + extended], "big")
            length += extended
        key = data[start + length : start + length + masked]
        self._mask = key if any(key) else None
        if first & 0xF != CONTINUATION:
            self._opcode = first & 0xF
        self._left = size
        return start + length + masked

    def _take(self, piece: bytes) -> None:
        if self._mask is not None:
            piece = self._unmasked(piece, self._mask)
        if self._opcode == BINARY:
            if piece:
                self.on_data(piece)
            return
        self._control += piece
        if not self._left:
            message, self._control = bytes(self._control), bytearray()
            self._take_control(message)

    def _unmasked(self, piece: bytes, mask: bytes) -> bytes:
        size = len(piece)
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        turn = size % 4
        self._mask = mask[turn:] + mask[:turn]
        return (int.from_bytes(piece, "big") ^ key).to_bytes(size, "big")

    def _take_control(self, message: bytes) -> None:
        if self._opcode == TEXT:
            self.text = message.decode(errors="replace")
        elif self._opcode == PING:
            self._write_frame(PONG, message)
        elif self._opcode == CLOSE:
            if self._transport is not None:
                self._transport.close()
            self._end()

    def _write_frame(self, opcode: int, data: bytes | memoryview) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        size, masked = len(data), 0x80 if self._is_client else 0
        if size < 126:
            head = bytes((0x80 | opcode, masked | size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, masked | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, masked | 127)) + size.to_bytes(8, "big")
        if masked:
            head += bytes(4)
        if size < LARGE_BYTES:
            self._transport.write(head + data)
        else:
            self._transport.write(head)
            self._transport.write(data)

    def _keep(self, piece: bytes) -> None:
        self._queue.append(piece)
        self._queued += len(piece)
        if self._queued >= QUEUED_BYTES:
            self.pause_reading()
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
            self.on_writable = None
            self._wake_reader()


class _Opening(asyncio.Protocol):
    """The client's side of a handshake."""

    def __init__(self) -> None:
        self._received = b""
        self.answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        """The status, and what came after the answer."""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if (end or len(head) > HEAD_BYTES) and not self.answered.done():
            assert self.transport is not None
            self.transport.pause_reading()  # what follows is for the stream
            _, _, status = head.partition(b" ")
            self.answered.set_result((int(status[:3]) if status[:3].isdigit() else 0, rest))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionResetError("the connection was closed"))
            self.answered.exception()  # its caller may have been cancelled while it connected


async def open_byte_stream(endpoint: Endpoint, path: str) -> ByteStream:
    """Open a stream at a server of this project.

    :raises StreamRefused: when the server refuses.
    :raises OSError: TimeoutError among them, when nothing answers.
    """
    connection = await connect(endpoint, timeout_s=CONNECT_TIMEOUT_S)
    loop = asyncio.get_running_loop()
    base, host = endpoint.base_url.rstrip("/"), endpoint.host_and_port[0]
    try:
        transport, opening = await loop.create_connection(
            _Opening, sock=connection, ssl=endpoint.tls, server_hostname=host if endpoint.tls else None
        )
    except BaseException:
        connection.close()
        raise
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport.write(_request(base, path))
            status, rest = await opening.answered
        if status != 101:
            raise StreamRefused(status)
    except BaseException:
        abort(transport)
        raise
    stream = ByteStream(is_client=True)
    stream.connection_made(transport)
    transport.set_protocol(stream)
    if rest:
        stream.data_received(rest)
    transport.resume_reading()
    return stream


def _request(base: str, path: str) -> bytes:
    _, _, rest = base.partition("://")
    host, slash, prefix = rest.partition("/")
    headers = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **VERSION_HEADERS,
    }
    lines = [f"GET {slash}{prefix}{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()
