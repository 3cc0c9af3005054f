"""Trunks between the parts of a network at two agents, through a relay whose connections can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from pytest_propolis.agent_api.networks import AddPort
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.settings import Settings

LEFT: Final = bytes.fromhex("020000000001")
RIGHT: Final = bytes.fromhex("020000000002")
DEADLINE_S: Final = 30.0


class Relay:
    """Passes connections to a UNIX socket on to another one."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._connections: set[asyncio.StreamWriter] = set()
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        async with await asyncio.start_unix_server(self._relay, path):
            try:
                yield
            finally:
                self.cut()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._connections:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        self._connections |= {writer, there_writer}
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            self._connections -= {writer, there_writer}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


class Card:
    """A network card, as QEMU connects it to a port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def plugged_in(cls, path: str) -> Card:
        return cls(*await asyncio.open_unix_connection(path))

    def send(self, frame: bytes) -> None:
        self._writer.write(len(frame).to_bytes(4, "big") + frame)

    async def receive(self) -> bytes:
        return await self._reader.readexactly(int.from_bytes(await self._reader.readexactly(4), "big"))

    async def until_received(self, content: bytes, *, sent_by: Card) -> None:
        """Have another card send a frame to this one, again and again, until it arrives."""
        receiving = asyncio.create_task(self._until(content))
        async with asyncio.timeout(DEADLINE_S):
            while not receiving.done():
                sent_by.send(RIGHT + LEFT + b"\x08\x00" + content)
                await asyncio.wait([receiving], timeout=0.05)
        await receiving

    async def _until(self, content: bytes) -> None:
        while not (await self.receive()).endswith(content):
            pass


@pytest.fixture
def two_hosts() -> Iterator[tuple[LocalHost, LocalHost]]:
    hosts = LocalHost(Settings(), run_id=secrets.token_hex(8)), LocalHost(Settings(), run_id=secrets.token_hex(8))
    yield hosts
    for host in hosts:
        host.close()


async def test_a_trunk_that_is_lost_is_opened_again(two_hosts: tuple[LocalHost, LocalHost]) -> None:
    here, there = two_hosts
    async with await here.client() as near, await there.client() as far:
        ours, theirs = await near.create_network("lan"), await far.create_network("lan")
        left = await Card.plugged_in(await near.add_port(ours, AddPort(number=1)))
        right = await Card.plugged_in(await far.add_port(theirs, AddPort(number=2)))
        endpoint = far.endpoint(f"/networks/{theirs}")
        assert endpoint.uds is not None
        relay = Relay(endpoint.uds)
        with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
            socket = Path(directory, "relay.sock")
            async with relay.listening(socket):
                await near.connect_network(ours, Endpoint(base_url=endpoint.base_url, uds=socket).address, theirs)
                await right.until_received(b"before", sent_by=left)
                relay.cut()
                await right.until_received(b"after", sent_by=left)
                assert relay.accepted == 2
