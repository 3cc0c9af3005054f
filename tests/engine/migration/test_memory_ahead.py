"""Memory that QEMU maps privately: read in its process, and what QEMU sends of it without what the target has."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pytest_propolis.engine.migration.between_hosts.memory_contents import KnownBlocks
from pytest_propolis.engine.migration.between_hosts.private_memory import PrivateMemory
from pytest_propolis.engine.migration.between_hosts.state_filter import PAGE_BYTES, WORD, StateFilter
from pytest_propolis.engine.qemu.binary import find_qemu
from pytest_propolis.engine.qemu.machine import Machine
from pytest_propolis.engine.qemu.memory import MEMORY_ID, GuestMemory, OwnMemory
from pytest_propolis.engine.templates.state_stream import load_state, save_state
from pytest_propolis.operating_system.child import NoJournal

MIB = 1 << 20
SIZE = 64 * MIB
# Below this are the BIOS's and the video card's addresses, which are no memory of the guest.
HIGH = MIB
WRITTEN_AT = 40 * MIB + 100
WRITTEN = b"written."


@contextlib.asynccontextmanager
async def machine(
    tmp_path: Path,
    memory: GuestMemory,
    *,
    incoming: bool = False,
    inherit: tuple[int, ...] = (),
    devices: tuple[str, ...] = (),
) -> AsyncIterator[Machine]:
    """A machine without a guest system, which has not run yet."""
    qemu = await find_qemu(None)
    made = Machine(
        program=qemu.system,
        arguments=[
            *qemu.arguments,
            *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *memory.arguments(size_mib=SIZE // MIB),
            *("-machine", f"pc,memory-backend={MEMORY_ID}", "-m", f"{SIZE // MIB}M"),
            *("-device", "isa-serial,index=0,chardev=com1"),
            *devices,
        ],
        log_path=tmp_path / "qemu.log",
        journal=NoJournal(),
        on_event=lambda event: None,
        incoming=incoming,
        inherit=inherit,
    )
    try:
        await made.start()
        yield made
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def fork(tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine that has written `WRITTEN`, on a template's memory with data here and there in its lower half."""
    chance = random.Random(1)
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(300):
            file.seek(chance.randrange(HIGH // PAGE_BYTES, SIZE // 2 // PAGE_BYTES) * PAGE_BYTES)
            file.write(chance.randbytes(PAGE_BYTES))
    loader = f"loader,addr={WRITTEN_AT},data={int.from_bytes(WRITTEN, 'little')},data-len={len(WRITTEN)}"
    memory = GuestMemory(path=str(path), shared=False)
    async with machine(tmp_path, memory, devices=("-device", loader)) as made:
        yield made


@contextlib.contextmanager
def memory_of(machine: Machine) -> Iterator[PrivateMemory]:
    assert machine.pid
    memory = PrivateMemory.of(machine.pid, SIZE)
    assert memory is not None
    try:
        yield memory
    finally:
        memory.close()


def whole(memory: PrivateMemory) -> bytearray:
    content = bytearray(SIZE)
    for start, chunk in memory.chunks(set()):
        content[start : start + len(chunk)] = chunk
    return content


@pytest.mark.parametrize("is_removed", [False, True], ids=["template is there", "template is removed"])
async def test_a_forks_memory_is_read_as_its_guest_sees_it(tmp_path: Path, is_removed: bool) -> None:
    async with fork(tmp_path) as made:
        if is_removed:
            (tmp_path / "ram").unlink()
        with memory_of(made) as memory:
            await made.execute("pmemsave", val=HIGH, size=SIZE - HIGH, filename=str(tmp_path / "seen"))
            assert whole(memory)[HIGH:] == (tmp_path / "seen").read_bytes()
            assert whole(memory)[WRITTEN_AT : WRITTEN_AT + len(WRITTEN)] == WRITTEN


async def test_what_was_known_is_read_again_and_nothing_else_without_data(tmp_path: Path) -> None:
    async with fork(tmp_path) as made:
        with memory_of(made) as memory:
            found = dict(memory.chunks(set()))
            empty = next(start for start in range(0, SIZE, MIB) if start not in found)
            assert dict(memory.chunks({empty})) == found | {empty: bytes(MIB)}


async def test_memory_that_is_shared_or_of_another_size_is_not_taken_for_a_forks(tmp_path: Path) -> None:
    async with machine(tmp_path, GuestMemory(path=str(tmp_path / "shared"), shared=True)) as made:
        assert made.pid
        assert PrivateMemory.of(made.pid, SIZE) is None
    async with fork(tmp_path) as made:
        assert made.pid
        assert PrivateMemory.of(made.pid, SIZE // 2) is None


async def test_a_qemu_that_has_ended_is_an_error(tmp_path: Path) -> None:
    async with fork(tmp_path) as made:
        with memory_of(made) as memory:
            await made.close()
            with pytest.raises(OSError, match="QEMU has ended"):
                whole(memory)
    assert made.pid
    assert PrivateMemory.of(made.pid, SIZE) is None


async def state_of(machine: Machine, path: Path) -> bytes:
    with path.open("wb") as file:
        await save_state(machine, file.fileno(), memory_in_file=False)
    return path.read_bytes()


def filtered(state: bytes, known: KnownBlocks, chance: random.Random) -> bytes:
    """Return what a filter passes on of a state that comes in pieces of any size."""
    state_filter, passed, at = StateFilter(known), bytearray(), 0
    while at < len(state):
        size = chance.choice((1, 7, 100, 5000, 200_000))
        passed += state_filter.feed(state[at : at + size])
        at += size
    return bytes(passed)


@pytest.mark.parametrize("seed", range(3))
async def test_a_target_gets_what_it_lacks_whatever_it_has(tmp_path: Path, seed: int) -> None:
    """It has some pages as they are, some as they were, and data where there is none any more."""
    chance, known = random.Random(seed), KnownBlocks(SIZE, PAGE_BYTES)
    own = OwnMemory.make()
    os.ftruncate(own.fd, SIZE)
    try:
        async with fork(tmp_path) as source:
            state = await state_of(source, tmp_path / "state")
            with memory_of(source) as memory:
                content = whole(memory)
            for offset in range(0, SIZE, PAGE_BYTES):
                page = bytes(content[offset : offset + PAGE_BYTES])
                if chance.random() < (0.7 if any(page) else 0.01):
                    page = page if chance.random() < 0.5 else chance.randbytes(PAGE_BYTES)
                    known.take(offset, page)
                    os.pwrite(own.fd, page, offset)
        passed = filtered(state, known, chance)
        assert len(passed) < len(state)
        async with machine(tmp_path, own.guest_memory, incoming=True, inherit=(own.fd,)) as target:
            (tmp_path / "passed").write_bytes(passed)
            with (tmp_path / "passed").open("rb") as file:
                await load_state(target, file.fileno(), memory_in_file=False)
            assert os.pread(own.fd, SIZE, 0) == content
    finally:
        own.close()


async def test_what_the_target_has_is_left_out_and_all_else_stays_as_it_was(tmp_path: Path) -> None:
    """Afterwards it has everything: the same state once more is that of the devices and of other memory."""
    async with fork(tmp_path) as source:
        state = await state_of(source, tmp_path / "state")
    known = KnownBlocks(SIZE, PAGE_BYTES)
    first, again = (StateFilter(known).feed(state) for _ in range(2))
    assert 250 * PAGE_BYTES < len(first) - len(again) < len(first)
    assert again.endswith(state[-10_000:])
    # Pages without data are not sent to a target that begins without any.
    assert len(state) - len(first) > (SIZE // PAGE_BYTES - 2000) * (WORD.size + 1)


def record(flags: int, offset: int = 0, block: bytes = b"", content: bytes = b"") -> bytes:
    return WORD.pack(offset | flags) + (bytes((len(block),)) + block if block else b"") + content


START = b"QEVM\0\0\0\3" + b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"
SIZES = record(0x04, 2 * PAGE_BYTES) + b"\x03ram" + WORD.pack(PAGE_BYTES) + b"\x03rom" + WORD.pack(PAGE_BYTES)
FOOTER = b"\x7e\0\0\0\x02"
PART = b"\x02\0\0\0\x02"
DATA = b"d" * PAGE_BYTES


@pytest.mark.parametrize(
    "stream",
    [
        b"no state of QEMU's",
        bytes(100_000) + START + SIZES,
        b"\x02\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04" + SIZES,
        START + SIZES + record(0x10) + b"unknown",
        START + SIZES + record(0x10) + FOOTER + b"unknown",
        START + record(0x80, 0, b"ram"),
    ],
    ids=["nothing", "late", "no start", "no footer", "no section", "unknown record"],
)
def test_what_is_not_known_is_passed_on_as_it_is(stream: bytes) -> None:
    known = KnownBlocks(MIB, PAGE_BYTES)
    state_filter = StateFilter(known)
    passed = b"".join(state_filter.feed(stream[at : at + 1]) for at in range(len(stream)))
    rest = state_filter.feed(b"x" * 70_000)
    assert passed + rest == stream + b"x" * 70_000


def test_a_record_that_follows_one_that_is_left_out_names_its_block() -> None:
    known = KnownBlocks(MIB, PAGE_BYTES)
    known.take(0, DATA)
    begin = START + SIZES + record(0x10) + FOOTER + PART + record(0x08, 0, b"rom", DATA)
    left_out = record(0x08, 0, b"ram", DATA)
    changed, unknown = record(0x08, PAGE_BYTES, b"ram", DATA), record(0x40, 0, b"ram", b"how it differs")
    same_changed, same_unknown = record(0x28, PAGE_BYTES, content=DATA), record(0x60, content=b"how it differs")
    assert StateFilter(known).feed(begin + left_out + same_unknown) == begin + unknown
    assert StateFilter(known).feed(begin + left_out + same_changed + same_unknown) == begin + changed + same_unknown
