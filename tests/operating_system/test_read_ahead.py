"""A generator that threads advance ahead of its reader."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Generator

import pytest

from pytest_propolis.operating_system.read_ahead import read_ahead


async def test_all_items_come_in_order_and_the_generator_is_closed() -> None:
    closed = threading.Event()

    def numbers() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            closed.set()

    async with read_ahead(numbers()) as items:
        assert [item async for item in items] == list(range(100))
    assert closed.is_set()


async def test_the_next_item_is_read_while_the_reader_has_the_one_before() -> None:
    second = threading.Event()

    def two() -> Generator[int, None, None]:
        yield 1
        second.set()
        yield 2

    async with read_ahead(two()) as items:
        async for item in items:
            if item == 1:
                assert await asyncio.to_thread(second.wait, 20)


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancelled_reader_ends_after_the_thread_that_reads_for_it(cancellations: int) -> None:
    entered, go_on = threading.Event(), threading.Event()
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    read = []

    def slow() -> Generator[bytes, None, None]:
        entered.set()
        go_on.wait(20)
        read.append(os.read(descriptor, 1))
        yield read[0]

    async def reader() -> None:
        try:
            async with read_ahead(slow()) as items:
                async for _ in items:
                    pass
        finally:
            os.close(descriptor)

    task = asyncio.create_task(reader())
    await asyncio.to_thread(entered.wait, 20)
    for _ in range(cancellations):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert read == [b"\0"]


async def test_an_error_of_the_generator_reaches_its_reader() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise OSError("no more")

    async with read_ahead(failing()) as items:
        assert await anext(items) == 1
        with pytest.raises(OSError, match="no more"):
            await anext(items)


async def test_an_error_behind_the_last_item_that_was_wanted_is_not_reported() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))

    def failing() -> Generator[int, None, None]:
        yield 1
        raise OSError("not wanted any more")

    async with read_ahead(failing()) as items:
        async for _ in items:
            break
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []
