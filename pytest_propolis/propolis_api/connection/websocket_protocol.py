"""uvicorn's websocket protocol, from which a handler can take the connection once it has accepted it."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .byte_stream import ByteStream
from .http_protocol import immediate

__all__ = ["DetachableProtocol", "detached"]

_EXTENSION: Final = "propolis.connection"


class DetachableProtocol(WebSocketsSansIOProtocol):
    """Puts itself into the scope of the request, for `detached`."""

    is_lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        super().connection_lost(exc)

    async def run_asgi(self) -> None:
        self.scope["extensions"][_EXTENSION] = {"protocol": self}
        await super().run_asgi()


def detached(scope: MutableMapping[str, Any]) -> ByteStream:
    """Take the connection of a websocket that was accepted in this step of the event loop.

    uvicorn still closes it when the server shuts down, and is notified of its end.
    """
    protocol: DetachableProtocol = scope["extensions"][_EXTENSION]["protocol"]
    stream = _Detached(protocol)
    transport = immediate(protocol.transport)
    stream.connection_made(transport)
    transport.set_protocol(stream)
    if protocol.is_lost:
        stream.connection_lost(None)
    return stream


class _Detached(ByteStream):
    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__(is_client=False)
        self._protocol = protocol

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._protocol.connection_lost(exc)
