"""The port at which an agent serves the agent of another host."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Final

from starlette.types import ASGIApp

from ...errors import AgentError
from ...propolis_api.connection.sockets import listen, reason_of
from ..http_server import Connections
from .limits import BUFFER_BYTES, detect_loss

__all__ = ["PeerListener", "own_address"]

SSH_CONNECTION: Final = "SSH_CONNECTION"
"""The variable that sshd sets: the client's address and port, and the server's address and port."""

HANDSHAKE_TIMEOUT_S: Final = 10.0


def own_address() -> str:
    """Return the address at which sshd accepted the connection that the agent was started over.

    :raises AgentError: when it was not started over SSH.
    """
    words = os.environ.get(SSH_CONNECTION, "").split()
    if len(words) != 4:
        raise AgentError("no address of this host is known: its sshd has not named one")
    return words[2]


class PeerListener:
    """A port that serves the agent's application over TLS to the holder of one certificate."""

    def __init__(self, app: ASGIApp, context: ssl.SSLContext) -> None:
        self._connections = Connections(app, buffer_bytes=BUFFER_BYTES)
        self._context = context
        self._server: asyncio.Server | None = None
        self.address = ""
        self.port = 0

    async def open(self) -> None:
        """Listen on a free port.

        :raises AgentError: when that is impossible.
        """
        self.address = own_address()
        try:
            listener = listen(self.address)
            detect_loss(listener)
        except OSError as error:
            raise AgentError(f"{self.address} cannot be listened on: {reason_of(error)}") from None
        self.port = listener.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(
            self._connections.protocol,
            sock=listener,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )

    def close(self) -> None:
        """Accept no more connections, and end the existing ones. Idempotent."""
        if self._server is not None:
            self._server.close()
        self._connections.close()
