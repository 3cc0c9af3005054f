"""uvicorn's HTTP protocol with one write per response; uvicorn itself writes head and body separately."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CoalescingProtocol", "immediate"]


class CoalescingProtocol(H11Protocol):
    """`H11Protocol` over a transport that coalesces the writes of one event loop iteration.

    Through an SSH forward the second of two small writes waits for the acknowledgement of the first, which the other
    side delays by 40 ms: sshd sets TCP_NODELAY for sessions with a terminal only.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as H11Protocol's
        super().connection_made(cast(asyncio.Transport, _CoalescingTransport(transport)))


class _CoalescingTransport:
    """A transport that sends its buffered writes at the end of the event loop iteration, or when it is closed."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            asyncio.get_running_loop().call_soon(self._flush)
        self._written.append(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def immediate(self) -> asyncio.Transport:
        """Send what is buffered, and return the transport that sends at once."""
        self._flush()
        return self._transport

    def _flush(self) -> None:
        if self._written:
            written, self._written = b"".join(self._written), []
            self._transport.write(written)


def immediate(transport: asyncio.Transport) -> asyncio.Transport:
    """Return the transport that a connection of `CoalescingProtocol` has below its own."""
    return transport.immediate() if isinstance(transport, _CoalescingTransport) else transport
