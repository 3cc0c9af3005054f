"""The backends that devices are served by: storage and network."""

from __future__ import annotations

from msgspec import Struct

from .integers import PositiveUint64, Uint32, require_uint64

__all__ = [
    "BlobStorageBackend",
    "CrucibleStorageBackend",
    "DlpiNetworkBackend",
    "FileStorageBackend",
    "VirtioNetworkBackend",
]


class CrucibleStorageBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Crucible volume. `request_json` is a volume construction request, as JSON inside the JSON."""

    readonly: bool
    request_json: str


class FileStorageBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the host.

    :param block_size: in bytes.
    :param workers: threads that serve it, for tests of the server itself; None: the server's own choice.
    """

    block_size: Uint32
    path: str
    readonly: bool
    workers: PositiveUint64 | None = None

    def __post_init__(self) -> None:
        require_uint64(workers=self.workers)


class BlobStorageBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A disk in the server's memory, whose first contents are given in base64."""

    base64: str
    readonly: bool


class VirtioNetworkBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A viona (virtio-net) VNIC of the host, by name."""

    vnic_name: str


class DlpiNetworkBackend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A DLPI VNIC of the host, by name."""

    vnic_name: str
