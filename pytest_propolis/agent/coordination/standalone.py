"""The embedded store as a program of its own: other machines reach it at a TCP port, with a token, and with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from ...errors import SettingsError
from ...propolis_api.connection.endpoint import Endpoint
from ..http_server import Certificate, http_server
from ..servers.standalone import Address, listening
from .service import CoordinationService

__all__ = ["own_endpoint", "require_certificate", "served_store"]

SCHEME: Final = "Bearer "


@contextlib.asynccontextmanager
async def served_store(
    address: Address, *, token: str, certificate: Certificate | None
) -> AsyncIterator[socket.socket]:
    """Serve an empty store at a TCP port for the length of the block, which gets the listening socket.

    :param token: what each connection must present.
    :raises HostError: when the address cannot be listened on.
    """
    service = CoordinationService()
    app = Starlette(routes=list(service.routes))
    with listening(address) as listener:
        server = http_server(_guarded(app, token), certificate)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener
        finally:
            server.should_exit = True
            await serving
            service.close()


def own_endpoint(listener: socket.socket, certificate: Certificate | None) -> Endpoint:
    """Return the endpoint at which the process that serves a store reaches it."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    place = str(Address(host=host, port=port))
    if certificate is None:
        return Endpoint(base_url=f"http://{place}")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False  # the name is that for other machines
    tls.load_verify_locations(certificate.chain)
    tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the chain may end before its authority
    return Endpoint(base_url=f"https://{place}", tls=tls)


def require_certificate(certificate: Certificate) -> None:
    """
    :raises SettingsError: when a server cannot use it.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate.chain, certificate.key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificate {certificate.chain} with the key {certificate.key} cannot be used: {error}",
            hint="give files in PEM format, the key without a password",
        ) from None


def _guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Return an application that refuses requests without the token."""
    expected = f"{SCHEME}{token}".encode()

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        if hmac.compare_digest(given, expected):
            await app(scope, receive, send)
            return
        refusal = PlainTextResponse("a token is needed", HTTPStatus.UNAUTHORIZED)
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, send)

    return asgi
