"""The memory budget: admit VMs only while there is memory for them, so that the OOM killer never ends one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ..errors import HostBusy, ResourceExhausted
from ..operating_system.figures import available_mib, total_mib

__all__ = ["MemoryBudget", "fork_cost_mib"]

HOLD_S: Final = 1.0
"""How long an admission waits before it fails with `HostBusy`."""

RESERVE_SHARE: Final = 16
QEMU_MIB: Final = 64


def fork_cost_mib(memory_mib: int) -> int:
    """Return the memory to reserve for a fork: QEMU's own, and a quarter of the guest's for pages that it writes."""
    return QEMU_MIB + memory_mib // 4


class MemoryBudget:
    """The memory reserved for each VM.

    VMs may not yet use all the memory reserved for them, and other programs may have taken what is available. Admission
    therefore checks both.

    :param total: returns the host's memory in MiB.
    :param available: returns how much of it is available now, in MiB.
    """

    def __init__(self, *, total: Callable[[], int] = total_mib, available: Callable[[], int] = available_mib) -> None:
        self._total = total
        self._available = available
        self._reserved: dict[str, int] = {}
        self._suspended: dict[str, int] = {}
        self._released = asyncio.Event()

    async def reserve(self, name: str, mib: int) -> None:
        """Reserve memory.

        :raises ResourceExhausted: if the host can never provide that much.
        :raises HostBusy: if it is not available now, nor a moment later.
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
                f"{mib} MiB of memory are needed: {sum(self._reserved.values())} of {limit} MiB are reserved for"
                f" {len(self._reserved)} VMs, and {self._available()} MiB are free now",
                hint="use fewer workers, or smaller VMs",
            ) from None
        self._reserved[name] = mib

    def release(self, name: str) -> None:
        """Release a reservation. Releasing one that does not exist has no effect."""
        self._suspended.pop(name, None)
        self._reserved.pop(name, None)
        self._released.set()

    def suspend(self, name: str) -> None:
        """Do not count a reservation until `resume`: its VM has ended, and may be started again."""
        if name in self._reserved:
            self._suspended[name] = self._reserved.pop(name)
            self._released.set()

    def resume(self, name: str) -> None:
        """Count a suspended reservation again, even if it is more than there is."""
        if name in self._suspended:
            self._reserved[name] = self._suspended.pop(name)

    def _fits(self, mib: int, limit: int) -> bool:
        kept_free = self._total() - limit
        # Always admit the only VM: other programs use the memory then, and may release it under pressure.
        return not self._reserved or (
            sum(self._reserved.values()) + mib <= limit and mib + kept_free <= self._available()
        )
