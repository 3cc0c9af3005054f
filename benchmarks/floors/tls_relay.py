"""The floor of a network between two hosts: two relays of frames that are connected by TLS, written by hand.

    python tls_relay.py listen SOCKET IDENTITY          prints its port
    python tls_relay.py connect SOCKET IDENTITY PORT    prints "ready"

Each relays between one client of its UNIX socket, whose frames follow their lengths in four bytes, and the other one. A
client that does not keep up loses frames.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import cast

BUFFER_BYTES = 1 << 18
FULL_BYTES = 1 << 20
LENGTH_BYTES = 4


class Port(asyncio.BufferedProtocol):
    """One side of a relay: passes whole frames on to the other one."""

    def __init__(self, others: list[Port]) -> None:
        self._others = others
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._others.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.remove(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        end = 0
        while self._filled - end >= LENGTH_BYTES:
            after = end + LENGTH_BYTES + int.from_bytes(self._view[end : end + LENGTH_BYTES], "big")
            if after > self._filled:
                break
            end = after
        for other in self._others:
            assert other.transport is not None
            if other is not self and end and other.transport.get_write_buffer_size() < FULL_BYTES:
                other.transport.write(bytes(self._view[:end]))
        self._buffer[: self._filled - end] = self._buffer[end : self._filled]
        self._filled -= end


def context(identity: str, protocol: int) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(identity)
    made.load_cert_chain(identity)
    return made


async def main(role: str, path: str, identity: str, *port: str) -> None:
    loop = asyncio.get_running_loop()
    ports: list[Port] = []
    await loop.create_unix_server(lambda: Port(ports), path)
    if role == "listen":
        server = await loop.create_server(
            lambda: Port(ports), "127.0.0.1", 0, ssl=context(identity, ssl.PROTOCOL_TLS_SERVER)
        )
        print(server.sockets[0].getsockname()[1], flush=True)
    else:
        client = context(identity, ssl.PROTOCOL_TLS_CLIENT)
        await loop.create_connection(lambda: Port(ports), "127.0.0.1", int(port[0]), ssl=client)
        print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
