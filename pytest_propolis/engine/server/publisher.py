"""The public state of a VM: published with a generation number, awaited by long polls.

As propolis-server's ``state-monitor``: generations start at 1, each publication adds one, an observer that asks for a
generation that has been reached is answered at once, and intermediate states may be skipped by slow observers.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import msgspec

from ...propolis_api import (
    InstanceMigrateStatusResponse,
    InstanceMigrationStatus,
    InstanceState,
    InstanceStateMonitorResponse,
    MigrationState,
)

__all__ = ["PublisherGone", "StatePublisher"]


class PublisherGone(Exception):
    """Raised in observers when the VM was run down, so that no more states will be published."""


class StatePublisher:
    """The externally visible state of one VM, from ensure to rundown.

    :param migration_in: the migration that the VM comes from; it is in the phase Sync.
    """

    def __init__(self, initial: InstanceState, *, migration_in: UUID | None = None) -> None:
        self._gen = 1
        self._state = initial
        self._migration = InstanceMigrateStatusResponse(migration_in=_status(migration_in, MigrationState.SYNC))
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def state(self) -> InstanceState:
        return self._state

    def snapshot(self) -> InstanceStateMonitorResponse:
        return InstanceStateMonitorResponse(gen=self._gen, migration=self._migration, state=self._state)

    def publish(self, state: InstanceState) -> None:
        self._state = state
        self._gen += 1
        self._wake()

    def publish_migration_in(self, migration_id: UUID, phase: MigrationState) -> None:
        self._publish_migration(migration_in=_status(migration_id, phase))

    def publish_migration_out(self, migration_id: UUID, phase: MigrationState) -> None:
        self._publish_migration(migration_out=_status(migration_id, phase))

    def _publish_migration(self, **latest: InstanceMigrationStatus | None) -> None:
        self._migration = msgspec.structs.replace(self._migration, **latest)
        self._gen += 1
        self._wake()

    def close(self) -> None:
        """Raise `PublisherGone` in every waiting observer."""
        self._closed = True
        self._wake()

    async def wait_for(self, gen: int) -> InstanceStateMonitorResponse:
        """Wait until generation `gen` has been published; no time limit.

        :raises PublisherGone: when the VM is run down before.
        """
        while self._gen < gen:
            if self._closed:
                raise PublisherGone
            await self._changed.wait()
        return self.snapshot()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _status(migration_id: UUID | None, phase: MigrationState) -> InstanceMigrationStatus | None:
    return InstanceMigrationStatus(id=migration_id, state=phase) if migration_id else None
