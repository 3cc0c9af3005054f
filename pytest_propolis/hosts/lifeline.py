"""The lifeline: a connection that stays open for as long as this process lives.

When it breaks, however this process ends, the agent releases everything that this process owned. It is a bare socket,
independent of event loops, because those come and go with tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Final

from ..agent_api.agent_process import CLIENT_HEADER, LINGER_HEADER, PID_HEADER
from ..errors import AgentError
from ..propolis_api.connection.sockets import unix_socket

__all__ = ["AgentNotRunning", "Lifeline"]

HANDSHAKE_TIMEOUT_S: Final = 10.0


class AgentNotRunning(Exception):
    """Raised when no agent is listening on a socket, or the agent is about to exit."""


class Lifeline:
    """An open lifeline. Close it to disconnect; the agent then releases what the client still owns."""

    def __init__(self, connection: socket.socket, path: Path, client: str) -> None:
        self.path = path
        self.client = client
        self.is_dropped = False
        """Whether it was closed without waiting until the agent has released what this process owned."""
        self._connection = connection
        _lifelines.add(self)

    @classmethod
    async def open(cls, path: Path, *, client: str, pid: int | None = None, linger_s: float = 0.0) -> Lifeline:
        """Connect, and wait until the agent confirms that this client is registered.

        :param pid: 0 where the agent is on another machine; by default that of this process.
        :param linger_s: how long an agent that lingers is to stay after its last client.
        :raises AgentNotRunning: if no agent answers, or it serves no further runs.
        :raises AgentError: if the agent does not answer in time.
        """
        connection = unix_socket()
        connection.setblocking(False)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await _handshake(connection, path, client, os.getpid() if pid is None else pid, linger_s)
        except (FileNotFoundError, ConnectionError, AgentNotRunning):
            connection.close()
            raise AgentNotRunning from None
        except TimeoutError:
            connection.close()
            raise AgentError(
                f"the agent at {path} does not answer", waited_s=HANDSHAKE_TIMEOUT_S, hint=f"see the log beside {path}"
            ) from None
        except BaseException:
            connection.close()
            raise
        return cls(connection, path, client)

    @property
    def is_broken(self) -> bool:
        """Return whether the agent has closed the connection, for example because it died."""
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Disconnect. Idempotent."""
        with contextlib.suppress(OSError):  # closed already, or by the agent
            # A process that was forked without Python's knowledge may hold the connection, too.
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        _lifelines.discard(self)

    def drop(self) -> None:
        """Close it without waiting until the agent has released what this process owned."""
        self.is_dropped = True
        self.close()

    @staticmethod
    def all_open() -> list[Lifeline]:
        """The lifelines of this process."""
        return list(_lifelines)


_lifelines: Final[set[Lifeline]] = set()


def _leave_to_parent() -> None:
    """Close this forked process's copies of the connections, which its parent continues to use.

    The connections must break when the parent ends, not when its last child does. The child owns none of the parent's
    resources: `is_dropped` keeps it from waiting for their release.
    """
    for lifeline in Lifeline.all_open():
        lifeline.is_dropped = True
        lifeline._connection.close()
    _lifelines.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


async def _handshake(connection: socket.socket, path: Path, client: str, pid: int, linger_s: float) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, str(path))
    headers = f"Host: agent\r\n{CLIENT_HEADER}: {client}\r\n{PID_HEADER}: {pid}\r\n"
    headers += f"{LINGER_HEADER}: {linger_s:g}\r\n"
    request = f"GET /lifeline/ HTTP/1.1\r\n{headers}\r\n"
    await loop.sock_sendall(connection, request.encode())
    answer = b""
    while b"alive\n" not in answer:
        data = await loop.sock_recv(connection, 4096)
        answer += data
        if not data or (b"\r\n" in answer and b" 200 " not in answer.split(b"\r\n")[0]):
            raise AgentNotRunning
