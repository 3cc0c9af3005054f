"""A generator that threads advance, while its reader does something else with the item before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator
from typing import TypeVar

__all__ = ["read_ahead"]

Item = TypeVar("Item")


@contextlib.asynccontextmanager
async def read_ahead(items: Generator[Item, None, None]) -> AsyncIterator[AsyncIterator[Item]]:
    """Iterate over a generator in threads, one item ahead of the reader.

    On exit, also of a task that is cancelled, no thread is in the generator any more and it is closed: what it reads
    can be closed, too.
    """
    loop = asyncio.get_running_loop()
    upcoming = loop.run_in_executor(None, next, items, None)

    async def each() -> AsyncIterator[Item]:
        nonlocal upcoming
        while (item := await asyncio.shield(upcoming)) is not None:
            upcoming = loop.run_in_executor(None, next, items, None)
            yield item

    try:
        yield each()
    finally:
        while not upcoming.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([upcoming])
        upcoming.exception()  # its reader has left, or has had it
        items.close()
