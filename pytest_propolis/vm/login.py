"""Logging in to a guest that boots."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ..console.console import PANIC, Console
from ..guests.adapter import GuestAdapter

__all__ = ["ended_before_reset", "log_in"]


async def log_in(guest: GuestAdapter, console: Console) -> str | None:
    """Wait for a guest to boot, and log in. If it panics instead, return the reason.

    :raises ConsoleClosed: when the VM stops before.
    """
    panic = asyncio.ensure_future(console.transcript.wait_for(PANIC))
    login = asyncio.ensure_future(guest.log_in(console))
    try:
        await asyncio.wait([panic, login], return_when=asyncio.FIRST_COMPLETED)
        if not login.done() and not panic.exception():
            return panic.result().groups[0]
        await login
    finally:
        for wait in (panic, login):
            wait.cancel()
        await asyncio.gather(panic, login, return_exceptions=True)
    return None


async def ended_before_reset(console: Console, work: Coroutine[Any, Any, None]) -> bool:
    """Return whether some work at a guest was done before the guest reset its machine, which cancels the work."""
    reset, task = console.next_reset(), asyncio.ensure_future(work)
    try:
        await asyncio.wait([reset, task], return_when=asyncio.FIRST_COMPLETED)
        if not reset.done():
            await task
        return not reset.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
