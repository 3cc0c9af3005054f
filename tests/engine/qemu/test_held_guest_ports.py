"""Guest ports that are held while a machine's state is saved or loaded. The test has QEMU's end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest_asyncio

from pytest_propolis.engine.qemu.guest_ports import BUFFER_BYTES, GuestPort

MUCH = bytes(range(256)) * (BUFFER_BYTES // 64)


@pytest_asyncio.fixture
async def port() -> AsyncIterator[GuestPort]:
    port = GuestPort()
    yield port
    port.close()


def read_all(qemu: socket.socket) -> bytes:
    read = bytearray()
    with contextlib.suppress(BlockingIOError):
        while data := qemu.recv(1 << 16):
            read += data
    return bytes(read)


def write_until_full(qemu: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += qemu.send(b"x" * 512)
    return count


async def receive(qemu: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        received += await asyncio.get_running_loop().sock_recv(qemu, 1 << 20)
    return received


async def test_a_held_port_gives_qemu_nothing_and_loses_nothing(port: GuestPort) -> None:
    writing = asyncio.create_task(port.write(MUCH))
    await asyncio.sleep(0)
    before = port.qemu_end.recv(1000)
    port.hold()
    assert read_all(port.qemu_end) == b""
    await asyncio.sleep(0)
    assert read_all(port.qemu_end) == b""
    port.release()
    assert before + await receive(port.qemu_end, len(MUCH) - len(before)) == MUCH
    await writing


async def test_a_held_port_takes_what_fits_and_no_more(port: GuestPort) -> None:
    port.hold()
    reading = asyncio.create_task(port.read())
    written = write_until_full(port.qemu_end)
    await asyncio.sleep(0)
    assert write_until_full(port.qemu_end) == 0
    assert not reading.done()
    port.release()
    read = len(await reading)
    while read < written:
        read += len(await port.read())
    assert read == written


async def test_a_filled_port_takes_not_a_byte_and_shows_none_of_what_fills_it(port: GuestPort) -> None:
    port.fill()
    assert write_until_full(port.qemu_end) == 0
    port.release()
    port.qemu_end.send(b"from the guest")
    assert await port.read() == b"from the guest"
    assert write_until_full(port.qemu_end) >= BUFFER_BYTES // 4


async def test_the_end_of_a_port_ends_what_waits_for_it(port: GuestPort) -> None:
    reading = asyncio.create_task(port.read())
    writing = asyncio.create_task(port.write(2 * MUCH))
    await asyncio.sleep(0)
    port.close()
    assert await reading == b""
    (failure,) = await asyncio.gather(writing, return_exceptions=True)
    assert isinstance(failure, OSError)


async def test_the_end_of_a_held_port_ends_what_waits_for_it(port: GuestPort) -> None:
    port.hold()
    reading = asyncio.create_task(port.read())
    await asyncio.sleep(0)
    port.close()
    assert await reading == b""


async def test_what_the_machine_wrote_before_its_end_can_still_be_read(port: GuestPort) -> None:
    port.qemu_end.send(b"last words")
    port.hold()
    reading = asyncio.create_task(port.read())
    await asyncio.sleep(0)
    port.close()
    assert await reading == b"last words"
    assert await port.read() == b""


async def test_a_port_counts_what_its_machine_has_taken(port: GuestPort) -> None:
    await port.write(b"first")
    assert await receive(port.qemu_end, 5) == b"first"
    await port.write(b"second")
    port.hold()
    assert port.taken == 5
    port.release()
    assert await receive(port.qemu_end, 6) == b"second"
    assert port.taken == 11
    await port.write(b"third")
    port.close()
    assert port.taken == 11


async def test_a_filled_port_that_is_closed_shows_none_of_what_fills_it(port: GuestPort) -> None:
    port.fill()
    port.close()
    assert await port.read() == b""
