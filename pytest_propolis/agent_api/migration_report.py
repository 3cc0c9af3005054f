"""A server's report of its VM's migrations, beyond the Propolis API."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from .transfers import DiskTransfer, MemoryTransfer

__all__ = ["MigrationReport", "MigrationSide"]


class MigrationSide(msgspec.Struct, frozen=True, kw_only=True):
    """One migration, as one of its servers saw it.

    :param way: how the memory got to the target; None before that is settled.
    :param disks: how each disk got to the target, by backend.
    :param failure: why it failed, if it did.
    :param handed_over: whether the source has given its guest away.
    :param carried_bytes: how much went through the migration's streams between hosts that share no files.
    :param pause_s: how long the guest stood still, as the target knows when it runs; 0 before.
    :param phases_s: when each phase was reached, in seconds since the first one, by name.
    """

    id: UUID
    way: MemoryTransfer | None = None
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
