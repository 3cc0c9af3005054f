"""An instance spec: all that a VM is made of."""

from __future__ import annotations

from msgspec import Struct

from .board import Board
from .component import Component
from .devices import SpecKey
from .integers import Uint64, require_uint64

__all__ = [
    "InstanceSpec",
    "InstanceSpecStatus",
    "PresentSpec",
    "SmbiosType1Input",
    "WaitingForMigrationSource",
]


class SmbiosType1Input(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The SMBIOS table that describes the system to its guest."""

    manufacturer: str
    product_name: str
    serial_number: str
    version: Uint64

    def __post_init__(self) -> None:
        require_uint64(version=self.version)


class InstanceSpec(Struct, frozen=True, kw_only=True):
    """All that a VM is made of: a board, and components by key."""

    board: Board
    components: dict[SpecKey, Component]
    smbios: SmbiosType1Input | None = None


class WaitingForMigrationSource(Struct, frozen=True, tag_field="type", tag="WaitingForMigrationSource"):
    """The VM migrates in, and the source has not sent its spec yet."""


class PresentSpec(Struct, frozen=True, tag_field="type", tag="Present"):
    """The spec is known."""

    value: InstanceSpec


InstanceSpecStatus = WaitingForMigrationSource | PresentSpec
