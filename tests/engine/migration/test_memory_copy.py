"""Memory that is copied from file to file, in passes, while it is written to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pytest_propolis.engine.migration.between_hosts.memory_contents import FileMemory
from pytest_propolis.engine.migration.between_hosts.memory_copy import FRAME, MemoryReceiver, MemorySender
from pytest_propolis.engine.migration.failure import MigrationFailed
from pytest_propolis.engine.migration.protocol import ConnectionLost

SIZE = 24 << 20
PAGE = 4096


class End:
    """One end of a connection inside this process."""

    def __init__(self, incoming: asyncio.Queue[bytes | None], outgoing: asyncio.Queue[bytes | None]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, frame: str | bytes) -> None:
        assert isinstance(frame, bytes)
        await self._outgoing.put(frame)

    async def receive(self) -> bytes:
        frame = await self._incoming.get()
        if frame is None:
            raise ConnectionLost
        return frame

    async def close(self, reason: str) -> None:
        self._outgoing.put_nowait(None)

    def abandon(self) -> None:
        raise AssertionError


def connected() -> tuple[End, End]:
    there: asyncio.Queue[bytes | None] = asyncio.Queue()
    back: asyncio.Queue[bytes | None] = asyncio.Queue()
    return End(back, there), End(there, back)


@contextlib.contextmanager
def memories() -> Iterator[tuple[int, int]]:
    """The files of a source and of a target, both empty."""
    files = [os.memfd_create(name) for name in ("source", "target")]
    try:
        for file in files:
            os.ftruncate(file, SIZE)
        yield files[0], files[1]
    finally:
        for file in files:
            os.close(file)


@contextlib.asynccontextmanager
async def receiving(file: int, connection: End) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(MemoryReceiver(file, connection).receive())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def scatter(file: int, chance: random.Random, pages: int) -> None:
    for _ in range(pages):
        content = chance.choice((bytes(PAGE), chance.randbytes(PAGE)))
        os.pwrite(file, content, chance.randrange(SIZE // PAGE) * PAGE)


def content(file: int) -> bytes:
    return os.pread(file, SIZE, 0)


def descriptors_of(file: int) -> int:
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.path.samestat(path.stat(), os.fstat(file))
    return count


async def test_a_pass_that_is_cancelled_at_any_time_leaves_its_file_to_the_caller() -> None:
    near, _ = connected()
    with memories() as (source, _target):
        scatter(source, random.Random(4), 1000)
        for turns in range(40):
            copying = asyncio.create_task(MemorySender(FileMemory(source), near).copy_while_running())
            for _ in range(turns):
                await asyncio.sleep(0)
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert descriptors_of(source) == 1


@pytest.mark.parametrize("seed", range(5))
async def test_what_was_written_between_passes_and_zeroed_and_freed_arrives(seed: int) -> None:
    chance = random.Random(seed)
    near, far = connected()
    with memories() as (source, target):
        scatter(source, chance, 1500)
        async with receiving(target, far) as received:
            sender = MemorySender(FileMemory(source), near)
            await sender.copy_while_running()
            assert content(target) == content(source)
            before = sender.carried_bytes
            scatter(source, chance, 50)
            place = chance.randrange(8) << 20
            os.ftruncate(source, SIZE - place)
            os.ftruncate(source, SIZE)  # what was there is a hole now, as after a guest has returned memory
            await sender.copy_rest()
            await received
            assert content(target) == content(source)
            assert 0 < sender.carried_bytes - before < before


async def test_unchanged_memory_is_not_sent_again() -> None:
    near, far = connected()
    with memories() as (source, target):
        scatter(source, random.Random(1), 500)
        async with receiving(target, far) as received:
            sender = MemorySender(FileMemory(source), near)
            await sender.copy_while_running()
            before = sender.carried_bytes
            await sender.copy_rest()
            await received
            assert sender.carried_bytes == before


async def test_a_guest_that_writes_all_the_while_is_stopped_for_the_rest_in_the_end() -> None:
    chance = random.Random(2)
    near, far = connected()
    with memories() as (source, target):

        async def write() -> None:
            while True:
                scatter(source, chance, 20)
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        async with receiving(target, far) as received:
            sender = MemorySender(FileMemory(source), near)
            await sender.copy_while_running()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await sender.copy_rest()
            await received
            assert content(target) == content(source)


async def test_a_source_that_leaves_before_its_last_pass_is_an_error() -> None:
    near, far = connected()
    with memories() as (source, target):
        scatter(source, random.Random(3), 100)
        async with receiving(target, far) as received:
            await MemorySender(FileMemory(source), near).copy_while_running()
            await near.close("")
            with pytest.raises(MigrationFailed, match="the source has left while it sent the guest's memory"):
                await received


async def test_a_target_that_leaves_is_an_error() -> None:
    near, far = connected()
    with memories() as (source, _):
        await far.close("")
        with pytest.raises(MigrationFailed, match="the target takes no more memory"):
            await MemorySender(FileMemory(source), near).copy_while_running()


@pytest.mark.parametrize(
    "message",
    [
        FRAME.pack(SIZE - 1, 2) + b"ab",
        FRAME.pack(0, 1000) + b"ab",
        FRAME.pack(0, 2) + b"ab" + b"more",
        b"short",
    ],
    ids=["behind the end", "too short", "half a frame", "no frame"],
)
async def test_what_is_no_memory_of_this_guest_is_refused_and_not_written(message: bytes) -> None:
    near, far = connected()
    with memories() as (_, target):
        async with receiving(target, far) as received:
            await near.send(message)
            with pytest.raises(MigrationFailed, match="memory that the guest does not have here"):
                await received
        assert os.fstat(target).st_size == SIZE
