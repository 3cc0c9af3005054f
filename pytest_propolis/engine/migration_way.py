"""The ways in which a guest's memory gets to the target."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from .accelerator import AcceleratorName

__all__ = ["MigrationWay", "way_of_copying"]

# Before, QEMU's emulator loses track of the pages that a running guest writes: they arrive stale, in five tries of five
# with 7.2. With 10.0 none did in 170, from guests that had booted and from forks. KVM tracks them in hardware or in the
# kernel, and was never concerned.
LIVE_UNDER_TCG: Final = (10, 0, 0)


class MigrationWay(StrEnum):
    """How the memory gets to the target."""

    SHARED_MEMORY = "shared-memory"
    """It stays where it is: both QEMUs map it. The guest is stopped while the devices' state moves."""

    STOP_AND_COPY = "stop-and-copy"
    """The guest is stopped while its memory is copied."""

    LIVE = "live"
    """The guest runs while its memory is copied, and is stopped for the rest of it."""

    @property
    def memory_in_file(self) -> bool:
        return self is MigrationWay.SHARED_MEMORY


def way_of_copying(accelerator: AcceleratorName, qemu_version: tuple[int, int, int]) -> MigrationWay:
    """The best way to copy memory that is known to leave it intact."""
    if accelerator == "kvm" or qemu_version >= LIVE_UNDER_TCG:
        return MigrationWay.LIVE
    return MigrationWay.STOP_AND_COPY
