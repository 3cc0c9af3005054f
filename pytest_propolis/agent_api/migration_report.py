"""A server's report of its VM's migrations, beyond the Propolis API."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

import msgspec

__all__ = ["DiskTransfer", "MemoryTransfer", "MigrationReport", "MigrationSide"]


class MemoryTransfer(StrEnum):
    """How the memory is transferred to the target."""

    SHARED_MEMORY = "shared-memory"
    """It stays where it is: both QEMUs map it. The guest is stopped while the devices' state moves."""

    STOP_AND_COPY = "stop-and-copy"
    """The guest is stopped while its memory is copied."""

    COPIED_IN_PASSES = "copied-in-passes"
    """The servers compare and copy it while the guest runs, and the guest is stopped for the last differences."""

    COPIED_AHEAD = "copied-ahead"
    """The servers copy it while the guest runs. Then the guest is stopped while its QEMU sends all of it, and the
    source's server passes on what differs."""

    LIVE = "live"
    """The guest runs while its memory is copied, and is stopped for the rest of it."""

    @property
    def memory_in_file(self) -> bool:
        """Whether it reaches the target's file without QEMU, which sends the devices' state only."""
        return self in (MemoryTransfer.SHARED_MEMORY, MemoryTransfer.COPIED_IN_PASSES)


class DiskTransfer(StrEnum):
    """How a disk is transferred to the target."""

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


class MigrationSide(msgspec.Struct, frozen=True, kw_only=True):
    """One migration, as one of its servers saw it.

    :param memory_transfer: how the memory got to the target; None before that is known.
    :param disks: how each disk got to the target, by backend.
    :param failure: why it failed, if it did.
    :param handed_over: whether the source has given its guest away.
    :param carried_bytes: how much went through the migration's streams between hosts that share no files.
    :param pause_s: how long the guest stood still, as the target knows when it runs; 0 before.
    :param phases_s: when each phase was reached, in seconds since the first one, by name.
    """

    id: UUID
    memory_transfer: MemoryTransfer | None = None
    disks: Mapping[str, DiskTransfer] = {}
    failure: str | None = None
    handed_over: bool = False
    carried_bytes: int = 0
    pause_s: float = 0.0
    phases_s: Mapping[str, float] = {}


class MigrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The latest migration into a server, and the latest out of it. Each stays after its end.

    :param stopped_s: when QEMU last stopped the guest, by the host's clock in seconds since the epoch; 0 for never.
    :param resumed_s: when QEMU last let it run.
    """

    migration_in: MigrationSide | None = None
    migration_out: MigrationSide | None = None
    stopped_s: float = 0.0
    resumed_s: float = 0.0
