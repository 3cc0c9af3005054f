"""The stream of a migration: a connection of the two QEMUs, over a UNIX socket that only their user can reach.

The engine opens the connection, and passes each QEMU its end. The target listens for one connection only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .failure import MigrationFailed

__all__ = ["StreamListener", "connect_stream", "private_listener", "short_path"]

CONNECT_TIMEOUT_S: Final = 10.0


class StreamListener:
    """Waits for the source's QEMU, in a private directory. Closing is idempotent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = private_listener(path)

    async def accept(self) -> socket.socket:
        """The connection; no further one is taken."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        self.close()
        return connection

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)


def private_listener(path: Path) -> socket.socket:
    """Return a UNIX socket that listens in a private directory, for its user only. The caller removes the file.

    :raises OSError: when it cannot be created.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with short_path(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen()
        listener.setblocking(False)
    except OSError:
        listener.close()
        path.unlink(missing_ok=True)
        raise
    return listener


async def connect_stream(path: Path) -> socket.socket:
    """The source's end of the stream.

    :raises MigrationFailed: when nothing listens there.
    """
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.setblocking(False)
        with short_path(path) as address:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(stream, address)
    except OSError as error:  # TimeoutError is one
        stream.close()
        raise MigrationFailed(f"the target's stream {path} cannot be reached: {error or 'timed out'}") from None
    except BaseException:
        stream.close()
        raise
    return stream


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Yield a path of the same socket that fits into the 107 characters of a socket's address.

    It is valid for all processes of this user, for the length of the block.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/{os.getpid()}/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
