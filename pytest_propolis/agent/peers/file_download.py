"""A download of a file from another agent, in a thread: an event loop takes twice the processor time for its bytes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import BinaryIO, Final, cast
from urllib.parse import urlsplit

import msgspec

from ...agent_api.messages import SendFile
from ...errors import AgentError
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.sockets import connect_blocking
from ...storage.file_stream import COMPRESSED, HEADER, unpacked
from .limits import detect_loss

__all__ = ["FileDownload"]

BUFFER_BYTES: Final = 256 << 10
CONNECT_TIMEOUT_S: Final = 3.0


class FileDownload:
    """One request for a file's frames, over a connection of its own.

    :param endpoint: the other agent's.
    :param silence_s: how long it may send nothing.
    """

    def __init__(self, endpoint: Endpoint, *, silence_s: float) -> None:
        self._endpoint = endpoint
        self._silence_s = silence_s
        self._connection: socket.socket | None = None
        self._is_aborted = False

    def run(self, wanted: SendFile, write: Callable[[int, bytes], None]) -> None:
        """Request the frames, and pass each to `write` with its offset. Blocks.

        :raises AgentError: when the other agent does not have the file.
        :raises OSError: when it is silent, or the connection is lost or aborted.
        """
        with self._connected() as connection:
            self._connection = connection
            if self._is_aborted:
                raise ConnectionAbortedError
            connection.sendall(self._request(wanted))
            with cast(BinaryIO, connection.makefile("rb", buffering=BUFFER_BYTES)) as stream:
                _require_success(stream)
                while (frame := _frame(stream)) is not None:
                    write(*frame)

    def abort(self) -> None:
        """End it soon, from another thread."""
        self._is_aborted = True
        if (connection := self._connection) is not None:
            with contextlib.suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> socket.socket:
        connection = connect_blocking(self._endpoint, timeout_s=CONNECT_TIMEOUT_S)
        try:
            if self._endpoint.uds is None:
                detect_loss(connection)
            context = self._endpoint.tls
            connection = context.wrap_socket(connection) if context else connection
            connection.settimeout(self._silence_s)
            return connection
        except BaseException:
            connection.close()
            raise

    def _request(self, wanted: SendFile) -> bytes:
        """Return a request of HTTP/1.0: the answer is not divided into chunks then."""
        content = msgspec.json.encode(wanted)
        path = urlsplit(self._endpoint.base_url).path.rstrip("/")
        head = f"POST {path}/files/sent HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def _require_success(stream: BinaryIO) -> None:
    words = stream.readline().split()
    if len(words) < 2:
        raise ConnectionError("it ended the transfer")
    if words[1] != b"200":
        raise AgentError(f"it has no such file (status {words[1].decode(errors='replace')})")
    while stream.readline().strip():
        pass


def _frame(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Return the next frame's offset and content; None after the last one."""
    offset, length = HEADER.unpack(_exactly(stream, HEADER.size))
    return (offset, unpacked(length, _exactly(stream, length & ~COMPRESSED))) if length else None


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise ConnectionError("it ended the transfer")
    return data
