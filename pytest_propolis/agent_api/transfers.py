"""Ways to transfer memory and disks from the source of a migration to its target."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DiskTransfer", "MemoryTransfer"]


class MemoryTransfer(StrEnum):
    """A way to transfer the memory to the target."""

    SHARED_MEMORY = "shared-memory"
    """It stays where it is: both QEMUs map it. The guest is stopped while the devices' state moves."""

    STOP_AND_COPY = "stop-and-copy"
    """The guest is stopped while its memory is copied."""

    LIVE = "live"
    """The guest runs while its memory is copied, and is stopped for the rest of it."""

    @property
    def memory_in_file(self) -> bool:
        return self is MemoryTransfer.SHARED_MEMORY


class DiskTransfer(StrEnum):
    """A way to transfer a disk to the target."""

    SHARED = "shared"
    """It stays where it is: both QEMUs open it, one after the other."""

    COPIED = "copied"
    """The target has a disk of its own, which all contents are copied to while the guest runs."""

    COPIED_OVERLAY = "copied-overlay"
    """The target has an overlay of its own on the same image, and only what is above the image is copied."""

    FROM_SPEC = "from-spec"
    """It is read-only, and the spec says what is on it."""

    @property
    def is_copied(self) -> bool:
        return self in (DiskTransfer.COPIED, DiskTransfer.COPIED_OVERLAY)
