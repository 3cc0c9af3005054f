"""A line over a guest port that follows its guest from one server to the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from local_ports import LocalPorts, local_ports
from local_pty import console_on

from pytest_propolis.agent_api.guest_ports import SHELL_PORT, PortEnded
from pytest_propolis.console.shell import Shell
from pytest_propolis.console.shell_protocol import ended_mark, new_session
from pytest_propolis.console.transports.port_line import PortLine
from pytest_propolis.console.transports.port_loop import typed_command_for_port
from pytest_propolis.engine.qemu.guest_ports import GuestPort
from pytest_propolis.errors import ConsoleClosed
from pytest_propolis.propolis_api.connection.byte_stream import ByteStream

BINARY_FRAME = 0x82
TIMEOUT_S = 20


class MovingPorts:
    """The ports of a guest that migrates from one place to the next."""

    def __init__(self, *places: LocalPorts) -> None:
        self.moves = 0
        self._places = places
        self._moved = asyncio.Event()

    def move(self) -> None:
        self.moves += 1
        self._moved.set()

    async def connect(self, number: int) -> ByteStream:
        return await self._places[self.moves].connect(number)

    async def moved_since(self, moves: int) -> None:
        while self.moves == moves:
            await self._moved.wait()

    def open_script(self, descriptors: Mapping[int, int]) -> str:
        raise NotImplementedError


@contextlib.asynccontextmanager
async def two_places(directory: Path) -> AsyncIterator[tuple[GuestPort, GuestPort, MovingPorts, PortLine]]:
    here, there = directory / "here", directory / "there"
    here.mkdir()
    there.mkdir()
    async with local_ports(here) as first, local_ports(there) as second, console_on("dash", directory) as console:
        moving = MovingPorts(first, second)
        async with PortLine.over(moving, SHELL_PORT, console) as line:
            yield first.ports[SHELL_PORT], second.ports[SHELL_PORT], moving, line


async def read(port: GuestPort, count: int) -> bytes:
    return await asyncio.to_thread(lambda: b"".join(port.qemu_end.recv(1) for _ in range(count)))


async def test_what_a_guest_has_not_read_when_it_migrates_it_reads_there_once(tmp_path: Path) -> None:
    async with two_places(tmp_path) as (here, there, ports, line):
        received = bytearray()
        line.listen(received.extend)
        await line.send(b"read here ")
        assert await read(here, 10) == b"read here "
        here.qemu_end.send(b"written here ")
        here.qemu_end.setblocking(False)
        here.hold()
        await line.send(b"read there ")
        here.close()
        await line.send(b"and this")
        ports.move()
        assert await read(there, 19) == b"read there and this"
        there.qemu_end.send(b"written there")
        async with asyncio.timeout(20):
            while received != b"written here written there":
                await asyncio.sleep(0)


async def test_what_is_sent_after_a_migration_arrives_if_the_source_is_lost_without_a_word(tmp_path: Path) -> None:
    """Its agent was killed when it had handed the guest over, and this side has not noticed yet."""
    async with two_places(tmp_path) as (here, there, ports, line):
        await line.send(b"read here ")
        assert await read(here, 10) == b"read here "
        ports.move()
        lost = line._connection
        await line.send(b"read there ")
        lost.abort()
        await line.send(b"and this")
        assert await read(there, 19) == b"read there and this"


async def test_what_is_sent_when_the_port_has_just_been_closed_does_not_hide_what_was_taken(tmp_path: Path) -> None:
    async with local_ports(tmp_path) as ports, console_on("dash", tmp_path):
        stream = await ports.connect(SHELL_PORT)
        await stream.send(b"taken")
        port = ports.ports[SHELL_PORT]
        async with asyncio.timeout(TIMEOUT_S):
            while port.taken < 5:
                await asyncio.sleep(0)
            assert port.qemu_end.recv(5) == b"taken"
            stream.pause_reading()  # as if this process had other things to do
            port.close()
            for _ in range(100):
                await stream.send(b"late")
                await asyncio.sleep(0)
            stream.resume_reading()
            await asyncio.wait([stream.ended])
        end = PortEnded.told_by(stream.text)
        assert end is not None
        assert end.taken == 5
        stream.abort()


async def test_a_line_ends_with_its_console(tmp_path: Path) -> None:
    async with two_places(tmp_path) as (here, _, _, line):
        failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.on_failure(failure)
        here.close()
        line._console.transcript.fail(ConsoleClosed("the VM has stopped"))
        async with asyncio.timeout(20):
            with pytest.raises(ConsoleClosed):
                await failure


async def test_what_a_guest_has_written_before_a_shell_listens_reaches_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a fork has its identity before the client that waits for it has connected."""
    session, typed = new_session(), typed_command_for_port("true")
    async with local_ports(tmp_path) as ports, console_on("dash", tmp_path) as console:
        ports.ports[SHELL_PORT].qemu_end.send(ended_mark(typed.nonce, 0).encode())
        connection = await ports.connect(SHELL_PORT)
        answer = await connection.receive()
        connection.data_received(bytes((BINARY_FRAME, len(answer))) + answer)  # as with the handshake's answer
        monkeypatch.setattr(ports, "connect", AsyncMock(return_value=connection))
        async with PortLine.over(ports, SHELL_PORT, console) as line:
            shell = Shell(console, vm="vm", port=line)
            shell.resume(session, typed)
            assert (await shell.run_typed(typed, timeout_s=TIMEOUT_S, note="identity")).status == 0
