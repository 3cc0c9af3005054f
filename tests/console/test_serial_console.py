"""The serial console's websocket and history: nothing lost, nothing doubled. One guest for most."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pytest_propolis.errors import ApiError, ConsoleClosed
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = 4000
COUNT = f"i=0; while [ $i -lt {LINES} ]; do echo {{}}-$i; i=$((i+1)); done"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis: Run) -> AsyncIterator[TestVm]:
    async with propolis.vm_factory() as factory:
        yield await factory.start(guest="micro", cpus=1, memory_mib=256, channel="console")


@pytest_asyncio.fixture(loop_scope="module")
async def own_vm(propolis: Run) -> AsyncIterator[TestVm]:
    """A VM for a test that leaves none for others."""
    async with propolis.vm_factory() as factory:
        yield await factory.start(guest="micro", cpus=1, memory_mib=256, channel="console")


async def read_until(connection: ClientConnection, end: bytes) -> bytes:
    seen = bytearray()
    async with asyncio.timeout(60):
        while end not in seen[-(1 << 14) - len(end) :]:
            message = await connection.recv()
            assert isinstance(message, bytes)
            assert len(message) <= 16 << 10
            seen += message
    return bytes(seen)


async def whole_history(vm: TestVm) -> bytes:
    seen = b""
    while piece := (await vm.client.instance_serial_history(from_start=len(seen))).content:
        seen += piece
    return seen


async def test_history_and_live_output_join_without_a_seam(vm: TestVm) -> None:
    printing = asyncio.create_task(vm.run_bytes(COUNT.format("seam")))
    readers = []
    for line in range(0, LINES, LINES // 8):
        # The guest is in the middle of printing when each of these begins to read.
        await vm.wait_for_serial_output(f"seam-{line}\n")
        readers.append(asyncio.create_task(_read_from_start(vm, f"seam-{LINES - 1}\n".encode())))
    expected = b"".join(b"seam-%d\n" % number for number in range(LINES))
    assert await printing == expected
    for seen in await asyncio.gather(*readers):
        assert expected in seen
        assert (await whole_history(vm)).startswith(seen)


async def _read_from_start(vm: TestVm, end: bytes) -> bytes:
    async with vm.client.instance_serial(from_start=0) as connection:
        return await read_until(connection, end)


async def test_a_client_that_does_not_read_holds_up_neither_the_guest_nor_the_others(vm: TestVm) -> None:
    async with vm.client.instance_serial() as slow:
        expected = await vm.run_bytes(COUNT.format("slow"))
        assert expected.count(b"\n") == LINES
        assert expected in await read_until(slow, f"slow-{LINES - 1}\n".encode())


async def test_most_recent_begins_so_many_bytes_before_the_end(vm: TestVm) -> None:
    await vm.run("echo the end of it")
    history = await whole_history(vm)
    async with vm.client.instance_serial(most_recent=100) as connection:
        assert await connection.recv() == history[-100:]
    answer = await vm.client.instance_serial_history(most_recent=100)
    assert (answer.content, answer.last_byte_offset) == (history[-100:], len(history))


async def test_without_a_place_only_new_output_comes(vm: TestVm) -> None:
    await vm.run("echo this is old")
    async with (
        vm.client.instance_serial() as connection,
        vm.client.instance_serial(from_start=1 << 40) as beyond,
        vm.client.instance_serial(from_start=0, most_recent=100) as both,
    ):
        await vm.run("echo this is new")
        for each in (connection, beyond, both):
            seen = await read_until(each, b"this is new\n")
            assert b"this is old" not in seen


async def test_history_comes_in_pieces_of_the_size_asked_for(vm: TestVm) -> None:
    await vm.run("seq 4000")
    history = await whole_history(vm)
    first = await vm.client.instance_serial_history(from_start=0)
    assert (first.content, first.last_byte_offset) == (history[: 16 << 10], 16 << 10)
    few = await vm.client.instance_serial_history(from_start=7, max_bytes=5)
    assert (few.content, few.last_byte_offset) == (history[7:12], 12)
    none = await vm.client.instance_serial_history(from_start=1 << 40)
    assert (none.content, none.last_byte_offset) == (b"", len(history))
    everything = await vm.client.instance_serial_history(most_recent=1 << 40, max_bytes=10)
    assert everything.content == history[:10]


async def test_two_clients_both_see_and_both_may_type(vm: TestVm) -> None:
    async with (
        vm.client.instance_serial() as one,
        vm.client.instance_serial() as two,
        vm.interactive() as console,
    ):
        await one.send(b"echo 'from'-the-first\n")
        await two.send("text frames are ignored")
        await console.wait_for("\nfrom-the-first\n", timeout_s=30)
        await two.send(b"echo 'from'-the-second\n")
        await console.wait_for("\nfrom-the-second\n", timeout_s=30)
        for client in (one, two):
            seen = await read_until(client, b"\nfrom-the-second")
            assert re.search(rb"\nfrom-the-first\r?\n", seen)
            assert b"ignored" not in seen


async def test_the_guest_has_four_serial_ports(vm: TestVm) -> None:
    assert await vm.run("grep -c uart:16550A /proc/tty/driver/serial") == "4"
    # Nobody listens at the others, and that holds up no one.
    assert await vm.run("for n in 1 2 3; do head -c 5000 /dev/zero >/dev/ttyS$n && echo $n; done") == "1\n2\n3"


async def test_what_falls_out_of_the_history_is_refused(own_vm: TestVm) -> None:
    # More than the first and the last MiB, and more than the buffers of a client that never reads.
    async with own_vm.client.instance_serial():
        assert len(await own_vm.run_bytes("head -c 2400000 /dev/zero | tr '\\0' x", timeout_s=240)) == 2400000
    with pytest.raises(ApiError) as caught:
        await own_vm.client.instance_serial_history(from_start=(1 << 20) + 10)
    assert caught.value.status == 400
    async with own_vm.client.instance_serial(from_start=(1 << 20) + 10) as beginning_there:
        with pytest.raises(ConnectionClosed, match="is no longer kept"):
            await beginning_there.recv()
    last = await own_vm.client.instance_serial_history(most_recent=1 << 20)
    assert set(last.content) == {ord("x")}


async def test_a_guest_that_powers_off_ends_its_vm_and_all_its_consoles(own_vm: TestVm) -> None:
    async with own_vm.client.instance_serial() as connection:
        async with own_vm.interactive() as console:
            await console.send("poweroff -f\n")
            await own_vm.wait_for_state(InstanceState.DESTROYED)
            with pytest.raises(ConsoleClosed):
                await console.wait_for("never shown", timeout_s=30)
            with pytest.raises(ConnectionClosed) as closed:
                await receive_to_the_end(connection)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "VM stopped")


async def receive_to_the_end(connection: ClientConnection) -> None:
    while True:
        await connection.recv()
