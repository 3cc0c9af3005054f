"""Run work and programs, and time them."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable

__all__ = ["run_program", "timed"]


async def run_program(*words: str) -> None:
    """Run a program without its output.

    :raises SystemExit: when it fails.
    """
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.DEVNULL)
    if await process.wait() != 0:
        raise SystemExit(f"{' '.join(words)} failed")


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return how long work takes, in s."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began
