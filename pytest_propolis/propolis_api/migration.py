"""Live migration: what is replaced on the way, and how far it is."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from .backends import CrucibleStorageBackend, VirtioNetworkBackend
from .devices import MigrationFailureInjector

__all__ = [
    "CrucibleStorageBackendReplacement",
    "InstanceMigrateInitiateResponse",
    "InstanceMigrateStatusResponse",
    "InstanceMigrationStatus",
    "MigrationFailureInjectorReplacement",
    "MigrationState",
    "ReplacementComponent",
    "VirtioNetworkBackendReplacement",
]


class MigrationState(StrEnum):
    """A phase of a live migration. Each side publishes its own sequence; `RESUME` is never used."""

    SYNC = "Sync"
    RAM_PUSH = "RamPush"
    PAUSE = "Pause"
    RAM_PUSH_DIRTY = "RamPushDirty"
    DEVICE = "Device"
    RESUME = "Resume"
    RAM_PULL = "RamPull"
    SERVER = "Server"
    FINISH = "Finish"
    ERROR = "Error"


class InstanceMigrationStatus(Struct, frozen=True, kw_only=True):
    """The progress of one migration."""

    id: UUID
    state: MigrationState


class InstanceMigrateStatusResponse(Struct, frozen=True, kw_only=True):
    """The latest migration into this server and the latest out of it. Each stays after its end."""

    migration_in: InstanceMigrationStatus | None = None
    migration_out: InstanceMigrationStatus | None = None


class InstanceMigrateInitiateResponse(Struct, frozen=True, kw_only=True):
    """The migration that an ensure request began."""

    migration_id: UUID


class _Wrapper(Struct, frozen=True, forbid_unknown_fields=True, tag_field="component"):
    """On the wire: ``{"component": …, "spec": …}``."""


class MigrationFailureInjectorReplacement(_Wrapper, frozen=True, tag="MigrationFailureInjector"):
    spec: MigrationFailureInjector


class CrucibleStorageBackendReplacement(_Wrapper, frozen=True, tag="CrucibleStorageBackend"):
    spec: CrucibleStorageBackend


class VirtioNetworkBackendReplacement(_Wrapper, frozen=True, tag="VirtioNetworkBackend"):
    spec: VirtioNetworkBackend


ReplacementComponent = (
    MigrationFailureInjectorReplacement | CrucibleStorageBackendReplacement | VirtioNetworkBackendReplacement
)
"""What the target of a migration has in place of the source's component of the same key."""
