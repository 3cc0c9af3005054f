"""Input of a serial port, while QEMU reads it and while it does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis.engine.qemu.serial_port import SerialPort

pytestmark = pytest.mark.asyncio(loop_scope="function")

MORE_THAN_FITS = bytes(range(256)) * 8192


@pytest_asyncio.fixture(loop_scope="function")
async def port() -> AsyncIterator[SerialPort]:
    port = SerialPort()
    yield port
    port.close()


async def read(qemu_end: socket.socket, size: int) -> bytes:
    qemu_end.setblocking(False)
    data = bytearray()
    async with asyncio.timeout(30):
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(qemu_end, size)
    return bytes(data)


async def test_a_writer_waits_while_nothing_is_taken(port: SerialPort) -> None:
    writing = asyncio.create_task(port.write(MORE_THAN_FITS))
    await read(port.qemu_end, 1)
    assert not writing.done()
    assert await read(port.qemu_end, len(MORE_THAN_FITS) - 1) == MORE_THAN_FITS[1:]
    await writing


async def test_what_waits_when_the_port_is_held_travels_whole_and_in_order(port: SerialPort) -> None:
    writing = asyncio.create_task(port.write(MORE_THAN_FITS))
    await read(port.qemu_end, 1)
    port.hold()
    await port.write(b"and this")
    assert port.state().typed == MORE_THAN_FITS[1:] + b"and this"
    await writing


async def test_a_guest_that_reads_nothing_keeps_nobody_from_letting_it_run(port: SerialPort) -> None:
    port.hold()
    await port.write(MORE_THAN_FITS)
    port.release()
    after = asyncio.create_task(port.write(b"after"))
    assert await read(port.qemu_end, len(MORE_THAN_FITS) + 5) == MORE_THAN_FITS + b"after"
    await after


async def test_a_port_that_is_restored_gives_the_guest_nothing_before_it_runs(port: SerialPort) -> None:
    port.hold()
    await port.write(b"typed")
    other = SerialPort()
    other.restore(port.state())
    assert other.state().typed == b"typed"
    other.release()
    assert await read(other.qemu_end, 5) == b"typed"
    other.close()


async def test_typing_at_a_qemu_that_is_gone_is_an_error(port: SerialPort) -> None:
    port.qemu_end.close()
    with pytest.raises(OSError, match="Broken pipe"):
        await port.write(b"x")


async def test_who_types_at_a_port_on_its_way_waits_until_it_is_settled_whose_the_guest_is(port: SerialPort) -> None:
    port.hold()
    await port.write(b"early")
    assert port.state().typed == b"early"
    late = asyncio.create_task(port.write(b" late"))
    port.release()
    assert await read(port.qemu_end, 5) == b"early"
    assert await late
    assert await read(port.qemu_end, 5) == b" late"


async def test_what_is_typed_at_a_port_that_has_moved_is_not_the_guests(port: SerialPort) -> None:
    port.hold()
    port.state()
    late = asyncio.create_task(port.write(b"late"))
    port.move_to("there")
    assert not await late
    assert not await port.write(b"later")


async def test_typing_at_a_port_that_closes_on_its_way_is_an_error(port: SerialPort) -> None:
    port.hold()
    port.state()
    late = asyncio.create_task(port.write(b"late"))
    await asyncio.sleep(0)
    port.close()
    with pytest.raises(BrokenPipeError, match="closed"):
        await late


async def test_what_a_firmware_says_fits_while_nothing_reads(port: SerialPort) -> None:
    """QEMU writes each byte by itself; a UEFI firmware gives up after a second in which the UART takes none."""
    port.qemu_end.setblocking(False)
    for _ in range(500):
        assert port.qemu_end.send(b"x") == 1
    async with asyncio.timeout(30):
        while port.history.end < 500:
            await asyncio.sleep(0)
