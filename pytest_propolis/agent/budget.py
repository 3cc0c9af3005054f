"""The memory budget: VMs are admitted while there is memory for them, so that the kernel never has to kill one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..errors import HostBusy, ResourceExhausted
from .memory import available_mib, total_mib

__all__ = ["MemoryBudget", "fork_cost_mib"]

HOLD_S: Final = 1.0
"""How long an admission waits before it says that it does."""

RESERVE_SHARE: Final = 16
QEMU_MIB: Final = 64


def fork_cost_mib(memory_mib: int) -> int:
    """What a fork is counted as: QEMU itself, and a quarter of the guest's memory, for what it will have written."""
    return QEMU_MIB + memory_mib // 4


class MemoryBudget:
    """Who was promised how much of the host's memory.

    What VMs were promised may exceed what they use by now; and what is available may have been taken by others. Both
    are looked at.

    :param total: the host's memory in MiB.
    :param available: how much of it is free to be used now, in MiB.
    """

    def __init__(self, *, total: Callable[[], int] = total_mib, available: Callable[[], int] = available_mib) -> None:
        self._total = total
        self._available = available
        self._promised: dict[str, int] = {}
        self._released = asyncio.Event()

    async def promise(self, name: str, mib: int) -> None:
        """Set memory aside.

        :raises ResourceExhausted: when the host will never have so much.
        :raises HostBusy: when it does not have it now, nor a moment later.
        """
        limit = self._total() - self._total() // RESERVE_SHARE
        if mib > limit:
            raise ResourceExhausted(
                f"a VM with {mib} MiB of memory does not fit on this host: it can give {limit} MiB",
                hint="give the VM less memory",
            )
        try:
            async with asyncio.timeout(HOLD_S):
                while not self._fits(mib, limit):
                    self._released.clear()
                    await self._released.wait()
        except TimeoutError:
            raise HostBusy(
                f"{mib} MiB of memory are needed: {sum(self._promised.values())} of {limit} MiB are promised to"
                f" {len(self._promised)} VMs, and {self._available()} MiB are free now",
                hint="use fewer workers, or smaller VMs",
            ) from None
        self._promised[name] = mib

    def release(self, name: str) -> None:
        """Give it back. Giving back what was never promised is fine."""
        self._promised.pop(name, None)
        self._released.set()

    def _fits(self, mib: int, limit: int) -> bool:
        reserve = self._total() - limit
        # Whoever is alone is let in: what takes the memory is not ours, and may be given back when it gets short.
        return not self._promised or (
            sum(self._promised.values()) + mib <= limit and mib + reserve <= self._available()
        )
