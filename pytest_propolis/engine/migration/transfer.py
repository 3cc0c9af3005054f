"""Transfer QEMU's state while receiving messages from the other side."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from .failure import MigrationFailed

__all__ = ["transfer_and_confirm"]

REASON_TIMEOUT_S: Final = 1.0


async def transfer_and_confirm(transfer: Coroutine[Any, Any, None], answer: Coroutine[Any, Any, Any]) -> None:
    """Run QEMU's transfer, and wait for the other side's confirmation; a failure of one ends both.

    QEMU's error may only be the consequence of a failure on the other side, which is raised then.
    """
    moved, confirmed = tasks = asyncio.create_task(transfer), asyncio.create_task(answer)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if not confirmed.done():
            await asyncio.wait([confirmed], timeout=REASON_TIMEOUT_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    reason = None if confirmed.cancelled() else confirmed.exception()
    if isinstance(reason, MigrationFailed) and (reason.reported or moved.cancelled()):
        raise reason
    moved.result()
    confirmed.result()
