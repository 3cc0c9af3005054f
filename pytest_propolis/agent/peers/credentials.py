"""The TLS contexts of a connection between two agents."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from ...errors import AgentError

__all__ = ["client_context", "server_context"]


def server_context(identity: str, directory: Path) -> ssl.SSLContext:
    """Return the context of the agent that listens.

    :param identity: a self-signed certificate and its private key, as PEM: that of both agents.
    :param directory: a private directory.
    :raises AgentError: when it is none.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, identity, directory)


def client_context(identity: str, directory: Path) -> ssl.SSLContext:
    """As `server_context`, for the agent that connects."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity, directory)


def _context(protocol: int, identity: str, directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate is of these two agents, whatever their addresses are
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=identity)
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix="peer-") as file:  # ssl reads files only
            file.write(identity)
            file.flush()
            context.load_cert_chain(file.name)
    except (ssl.SSLError, ValueError) as error:
        raise AgentError(f"a peer's certificate is unusable: {error}") from None
    return context
