"""An address at which nothing answers, for volume construction requests that cannot be fulfilled."""

from __future__ import annotations

import socket
from typing import Final

from ...engine.volumes.storage_daemon import LOOPBACK

__all__ = ["BlackHole"]

FILL_TIMEOUT_S: Final = 5.0


class BlackHole:
    """An address of the loopback interface that drops the packets with which connections begin.

    To clients it is a host that has gone: no connection is accepted, and none is refused. A socket that listens drops
    such packets when the queue of its connections is full. That needs no privileges, unlike a network namespace.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=0)
        try:
            # Linux takes one connection more than the backlog.
            self._queued = socket.create_connection(self._listener.getsockname(), timeout=FILL_TIMEOUT_S)
        except BaseException:
            self._listener.close()
            raise

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        self._queued.close()
        self._listener.close()
