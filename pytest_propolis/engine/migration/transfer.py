"""The transfer of a guest to the target: which way its memory takes, and QEMU's while messages are received."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from ...agent_api.migration_report import MemoryTransfer
from ..qemu.accelerator.probe import AcceleratorName
from .failure import MigrationFailed

__all__ = ["select_copy_transfer", "transfer_and_confirm"]

REASON_TIMEOUT_S: Final = 1.0

# Before, QEMU's emulator loses track of the pages that a running guest writes: they arrive stale, in five tries of five
# with 7.2. With 10.0 none did in 170, from guests that had booted and from forks. KVM tracks them in hardware or in the
# kernel, and was never concerned.
LIVE_UNDER_TCG: Final = (10, 0, 0)


def select_copy_transfer(
    accelerator: AcceleratorName,
    qemu_version: tuple[int, int, int],
    *,
    between_files: bool = False,
    into_file: bool = False,
) -> MemoryTransfer:
    """Return the fastest transfer between two memories that is known to leave the content intact.

    :param between_files: whether each server can read or write its guest's memory in a file, and they are on two hosts.
    :param into_file: whether the target's server can do so, and the source's can only read its guest's in QEMU's
        process; and they are on two hosts.
    """
    if accelerator == "kvm" or qemu_version >= LIVE_UNDER_TCG:
        return MemoryTransfer.LIVE
    if between_files:
        return MemoryTransfer.COPIED_IN_PASSES
    return MemoryTransfer.COPIED_AHEAD if into_file else MemoryTransfer.STOP_AND_COPY


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
