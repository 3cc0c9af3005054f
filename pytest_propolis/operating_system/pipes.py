"""A pipe from which an event loop reads what other processes write."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

__all__ = ["read_pipe"]


@contextlib.asynccontextmanager
async def read_pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """A pipe's reader, and its other end, which the block closes.

    asyncio's own pipes would have `wait` wait for all processes that inherit them.
    """
    reader = asyncio.StreamReader()
    read_fd, write_fd = os.pipe()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
    )
    try:
        yield reader, write_fd
    finally:
        transport.close()
