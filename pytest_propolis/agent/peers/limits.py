"""The limits of a connection between hosts: of time, and of what it holds."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["BUFFER_BYTES", "detect_loss"]

BUFFER_BYTES: Final = 4 << 20
"""How much a connection holds at each end, so that processes of a busy host need not take turns for each 64 KiB."""

IDLE_S: Final = 1
PROBES: Final = 4
UNACKNOWLEDGED_MS: Final = 30_000
"""It also ends a connection whose receiver reads nothing for that long, so it is far above any pause of a process."""


def detect_loss(connection: socket.socket) -> None:
    """Have the system end a TCP connection whose other host no longer answers: after 5 s if it is idle.

    Set on a socket that listens, it applies to the connections that it accepts.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
