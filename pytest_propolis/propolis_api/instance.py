"""An instance: how it is made, named, driven from state to state, and watched."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from msgspec import Struct

from .devices import SpecKey
from .integers import Uint32, Uint64, require_uint64
from .migration import InstanceMigrateInitiateResponse, InstanceMigrateStatusResponse, ReplacementComponent
from .spec import InstanceSpec, InstanceSpecStatus

__all__ = [
    "FromMigration",
    "FromSpec",
    "Instance",
    "InstanceEnsureRequest",
    "InstanceEnsureResponse",
    "InstanceGetResponse",
    "InstanceInitializationMethod",
    "InstanceMetadata",
    "InstanceProperties",
    "InstanceSpecGetResponse",
    "InstanceState",
    "InstanceStateMonitorRequest",
    "InstanceStateMonitorResponse",
    "InstanceStateRequested",
    "MigrationTargetInit",
    "SpecInit",
]


class InstanceState(StrEnum):
    """A state that a server publishes. `REPAIRING` never is."""

    CREATING = "Creating"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    REBOOTING = "Rebooting"
    MIGRATING = "Migrating"
    REPAIRING = "Repairing"
    FAILED = "Failed"
    DESTROYED = "Destroyed"


class InstanceStateRequested(StrEnum):
    """A change of state that can be asked for."""

    RUN = "Run"
    STOP = "Stop"
    REBOOT = "Reboot"


class InstanceMetadata(Struct, frozen=True, kw_only=True):
    """The owner of an instance and the sled that it runs on, for metrics."""

    project_id: UUID
    silo_id: UUID
    sled_id: UUID
    sled_model: str
    sled_revision: Uint32
    sled_serial: str


class InstanceProperties(Struct, frozen=True, kw_only=True):
    """The identity of an instance."""

    description: str
    id: UUID
    metadata: InstanceMetadata
    name: str


class Instance(Struct, frozen=True, kw_only=True):
    """An instance and the state that it is in."""

    properties: InstanceProperties
    state: InstanceState


class FromSpec(Struct, frozen=True, kw_only=True):
    """Make the VM that the spec describes."""

    spec: InstanceSpec


class FromMigration(Struct, frozen=True, kw_only=True):
    """Take over the VM of another server.

    :param migration_id: chosen by the client that asks for the migration.
    :param replace_components: what is different here, by the keys of the source's spec.
    :param src_addr: the source server's address and port.
    """

    migration_id: UUID
    replace_components: dict[SpecKey, ReplacementComponent]
    src_addr: str


class SpecInit(Struct, frozen=True, tag_field="method", tag="Spec"):
    """Initialize from a spec."""

    value: FromSpec


class MigrationTargetInit(Struct, frozen=True, tag_field="method", tag="MigrationTarget"):
    """Initialize by migration from another server."""

    value: FromMigration


InstanceInitializationMethod = SpecInit | MigrationTargetInit


class InstanceEnsureRequest(Struct, frozen=True, kw_only=True):
    """The properties of the new instance, and how to initialize it."""

    init: InstanceInitializationMethod
    properties: InstanceProperties


class InstanceEnsureResponse(Struct, frozen=True, kw_only=True):
    """The instance was created. `migrate` names the migration that it arrives by."""

    migrate: InstanceMigrateInitiateResponse | None = None


class InstanceGetResponse(Struct, frozen=True, kw_only=True):
    """The server's instance."""

    instance: Instance


class InstanceSpecGetResponse(Struct, frozen=True, kw_only=True):
    """The server's instance with its spec, once that is known."""

    properties: InstanceProperties
    spec: InstanceSpecStatus
    state: InstanceState


class InstanceStateMonitorRequest(Struct, frozen=True, kw_only=True):
    """Answer as soon as the instance has reached generation `gen` of its state."""

    gen: Uint64

    def __post_init__(self) -> None:
        require_uint64(gen=self.gen)


class InstanceStateMonitorResponse(Struct, frozen=True, kw_only=True):
    """The state, its generation, and the migrations. To wait for the next one, ask for `gen` + 1."""

    gen: Uint64
    migration: InstanceMigrateStatusResponse
    state: InstanceState

    def __post_init__(self) -> None:
        require_uint64(gen=self.gen)
