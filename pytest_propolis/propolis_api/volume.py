"""A Crucible volume: its parts, their health, and how a part is replaced."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from msgspec import UNSET, Struct, UnsetType

from .integers import Uint64, require_uint64

__all__ = [
    "DownstairsActive",
    "DownstairsConnecting",
    "DownstairsInfo",
    "DownstairsInfoConnectionMode",
    "DownstairsInfoNegotiationStatus",
    "DownstairsInfoStatus",
    "DownstairsLiveRepair",
    "DownstairsStopping",
    "InstanceVCRReplace",
    "ReplaceResult",
    "SubVolumes",
    "UpstairsInfo",
    "UpstairsInfoStatus",
    "VolumeInfo",
    "VolumeStatus",
]


class DownstairsInfoConnectionMode(StrEnum):
    """Why a downstairs is being connected to."""

    NEW = "new"
    OFFLINE = "offline"
    FAULTED = "faulted"
    REPLACED = "replaced"


class DownstairsInfoNegotiationStatus(StrEnum):
    """The progress of the connection to a downstairs."""

    WAIT_CONNECT = "wait_connect"
    NEGOTIATING = "negotiating"
    WAIT_QUORUM = "wait_quorum"
    RECONCILE = "reconcile"
    LIVE_REPAIR_READY = "live_repair_ready"


class DownstairsConnecting(Struct, frozen=True, kw_only=True, tag_field="type", tag="connecting"):
    """Not usable yet."""

    mode: DownstairsInfoConnectionMode
    state: DownstairsInfoNegotiationStatus


class DownstairsActive(Struct, frozen=True, tag_field="type", tag="active"):
    """Takes part in every read and write."""


class DownstairsLiveRepair(Struct, frozen=True, tag_field="type", tag="live_repair"):
    """Is being repaired from the others while the guest runs."""


class DownstairsStopping(Struct, frozen=True, tag_field="type", tag="stopping"):
    """Is being let go."""


DownstairsInfoStatus = DownstairsConnecting | DownstairsActive | DownstairsLiveRepair | DownstairsStopping


class DownstairsInfo(Struct, frozen=True, kw_only=True):
    """One of the replicas of an upstairs."""

    region_id: UUID | None = None
    repair_addr: str | None = None
    state: DownstairsInfoStatus
    target_addr: str | None = None


class UpstairsInfoStatus(StrEnum):
    """The life of an upstairs."""

    INITIALIZING = "initializing"
    GO_ACTIVE = "go_active"
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    DISABLED = "disabled"


class UpstairsInfo(Struct, frozen=True, kw_only=True):
    """A replicated region: an upstairs with its downstairs as `targets`. `block_size` is in bytes."""

    block_size: Uint64 | None = None
    encrypted: bool
    generation: Uint64
    live_repair_in_progress: bool
    read_only: bool
    reconcile_in_progress: bool
    session_id: UUID
    state: UpstairsInfoStatus
    targets: tuple[DownstairsInfo, ...]
    upstairs_id: UUID

    def __post_init__(self) -> None:
        require_uint64(block_size=self.block_size, generation=self.generation)


class SubVolumes(Struct, frozen=True, kw_only=True):
    """A volume made of others, one after another, over a read-only parent if there is one."""

    read_only_parent: VolumeInfo | None = None
    sub_volumes: tuple[VolumeInfo, ...]


class VolumeInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node in the tree of a volume: exactly one of its fields is set, the other is `msgspec.UNSET`, which is false.

    The wire has ``{"volume": …}`` or ``{"upstairs": …}``.
    """

    volume: SubVolumes | UnsetType = UNSET
    upstairs: UpstairsInfo | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.volume is UNSET) is (self.upstairs is UNSET):
            raise ValueError("a VolumeInfo is either a volume or an upstairs")


class VolumeStatus(Struct, frozen=True, kw_only=True):
    """The volume behind a disk."""

    volume_info: VolumeInfo


class InstanceVCRReplace(Struct, frozen=True, kw_only=True):
    """A new volume construction request for a disk, as JSON inside the JSON."""

    vcr_json: str


class ReplaceResult(StrEnum):
    """The result of a new volume construction request.

    `STARTED`: accepted, the new target is being filled. `STARTED_ALREADY`, `COMPLETED_ALREADY`: it was there before.
    `VCR_MATCHES`: only the generation is new. `MISSING` never reaches a caller: propolis-server answers with an error.
    """

    STARTED = "started"
    STARTED_ALREADY = "started_already"
    COMPLETED_ALREADY = "completed_already"
    MISSING = "missing"
    VCR_MATCHES = "vcr_matches"
