"""A lock between processes that waits on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .progress import Progress

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["locked"]

_POLL_S: Final = 0.1
_held_here: Final[set[Path]] = set()
"""The lock files that this process holds."""


@asynccontextmanager
async def locked(path: Path, *, purpose: str, progress: Progress) -> AsyncIterator[None]:
    """Hold the lock file ``path`` during the block; notify ``progress`` once if it is held already.

    The kernel releases it when its holder dies, however it dies. Tasks of one process exclude each other too. It is not
    fair: any waiter may be next. There is no deadline, because the holder may be downloading; the waiting task can be
    cancelled.

    :param purpose: what the holder does, as in "another process is … already"; a task, if this process holds it.
    """
    from filelock import FileLock  # here, because clients of the agent import this module, and lock nothing

    # A single attempt each time: filelock's own wait blocks, or needs a thread.
    lock = FileLock(path, timeout=0, thread_local=False)
    reported = False
    while not _try(lock):
        if not reported:
            holder = "task" if path in _held_here else "process"
            progress(f"another {holder} is {purpose} already: waiting for it")
            reported = True
        await asyncio.sleep(_POLL_S)
    _held_here.add(path)
    try:
        yield
    finally:
        _held_here.discard(path)
        lock.release()


def _try(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        lock.acquire()
    except Timeout:
        return False
    return True
