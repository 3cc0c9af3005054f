"""Disks: storage backends become QEMU's block nodes, and disk devices sit on them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ....propolis_api import (
    BlobStorageBackend,
    BootSettings,
    CrucibleStorageBackend,
    FileStorageBackend,
    NvmeDisk,
    VirtioDisk,
)
from ...invalid_spec import InvalidSpec
from ..machine_part import MachinePart, PartKind
from .pci import PciBuses

__all__ = ["backend_nodes", "blob_contents", "disk_parts"]

DEFAULT_BLOCK_BYTES: Final = 512
SMALLEST_BLOCK_BYTES: Final = 512
LARGEST_BLOCK_BYTES: Final = 32768

WAITS: Final = {"werror": "stop", "rerror": "stop"}
"""Of a disk that is served from elsewhere: its requests wait when that fails. QEMU's NVMe disks cannot do so."""

Disk = VirtioDisk | NvmeDisk
StorageBackend = FileStorageBackend | BlobStorageBackend | CrucibleStorageBackend


def disk_parts(
    components: Mapping[str, Any],
    buses: PciBuses,
    *,
    nodes: Mapping[str, Mapping[str, Any]],
    blobs: Mapping[str, str],
) -> Iterator[MachinePart]:
    """Yield the QEMU parts of all disks and their backends, backends first.

    :param nodes: the block nodes of those storage backends that are not QEMU's own, by component.
    :param blobs: for each blob backend, the path of a file with its contents.
    :raises InvalidSpec: naming the component at fault.
    """
    order = _boot_order(components)
    names = backend_nodes(components)
    names |= {key: node["node-name"] for key, node in nodes.items()}
    users = _users(components)
    for key, component in components.items():
        if isinstance(component, StorageBackend):
            if key not in users:
                raise InvalidSpec(f"backend {key!r} is not used by any device")
            node = nodes.get(key) or _node(key, component, names[key], blobs)
            yield MachinePart(key, PartKind.BLOCK_NODE, node)
    for key, disk in components.items():
        if isinstance(disk, Disk):
            device = {
                **_model(key, disk),
                **buses.properties(disk.pci_path),
                "drive": names[disk.backend_id],
                **_block_size(disk.backend_id, components[disk.backend_id]),
                **(WAITS if isinstance(disk, VirtioDisk) and disk.backend_id in nodes else {}),
                **({"bootindex": order[key]} if key in order else {}),
            }
            yield MachinePart(key, PartKind.DEVICE, device)


def backend_nodes(keys: Iterable[str]) -> dict[str, str]:
    """QEMU's names for those block nodes that are its own, by backend.

    :param keys: of all components, in the order of the spec.
    """
    return {key: f"backend{number}" for number, key in enumerate(keys)}


def blob_contents(key: str, backend: BlobStorageBackend) -> bytes:
    """Decode the initial content of a blob backend.

    :raises InvalidSpec: when it is not base64, or no whole number of blocks.
    """
    try:
        contents = base64.b64decode(backend.base64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSpec(f"backend {key!r}: its contents are not base64: {error}") from None
    if not contents or len(contents) % DEFAULT_BLOCK_BYTES:
        raise InvalidSpec(
            f"backend {key!r}: its contents are {len(contents)} bytes, which is not a multiple of {DEFAULT_BLOCK_BYTES}"
        )
    return contents


def _users(components: Mapping[str, Any]) -> dict[str, str]:
    """The disk that uses each backend."""
    users: dict[str, str] = {}
    for key, disk in components.items():
        if not isinstance(disk, Disk):
            continue
        backend = disk.backend_id
        if not isinstance(components.get(backend), StorageBackend):
            raise InvalidSpec(f"disk {key!r} names backend {backend!r}, which is not a storage backend of this spec")
        if (other := users.setdefault(backend, key)) != key:
            raise InvalidSpec(f"disks {other!r} and {key!r} both use backend {backend!r}")
    return users


def _node(key: str, backend: StorageBackend, node: str, blobs: Mapping[str, str]) -> dict[str, Any]:
    match backend:
        case FileStorageBackend():
            # The format follows from the name and never from the content, which belongs to the guest.
            return _file_node(backend.path, node, readonly=backend.readonly, qcow2=backend.path.endswith(".qcow2"))
        case BlobStorageBackend():
            return _file_node(blobs[key], node, readonly=backend.readonly, qcow2=False)
    raise InvalidSpec(f"component {key!r}: this server has no backend for Crucible volumes")


def _file_node(path: str, node: str, *, readonly: bool, qcow2: bool) -> dict[str, Any]:
    return {
        "driver": "qcow2" if qcow2 else "raw",
        "node-name": node,
        "read-only": readonly,
        "discard": "unmap",
        # A disk of a test need not survive the host's power loss; QEMU's own death it does survive.
        "cache": {"no-flush": True},
        "file": {"driver": "host_device" if Path(path).is_block_device() else "file", "filename": path},
    }


def _block_size(key: str, backend: StorageBackend) -> dict[str, int]:
    size = DEFAULT_BLOCK_BYTES
    if isinstance(backend, FileStorageBackend):
        size = backend.block_size
    elif isinstance(backend, CrucibleStorageBackend):
        size = _Vcr.block_size_of(backend)
    if size == DEFAULT_BLOCK_BYTES:
        return {}
    if size.bit_count() != 1 or not SMALLEST_BLOCK_BYTES <= size <= LARGEST_BLOCK_BYTES:
        possible = f"a power of two from {SMALLEST_BLOCK_BYTES} to {LARGEST_BLOCK_BYTES}"
        raise InvalidSpec(f"backend {key!r}: block_size is {size}, and must be {possible}")
    return {"logical_block_size": size, "physical_block_size": size}


class _Vcr(msgspec.Struct):
    """The fields of a volume construction request that a device needs; the backend uses the rest."""

    block_size: int = DEFAULT_BLOCK_BYTES

    @classmethod
    def block_size_of(cls, backend: CrucibleStorageBackend) -> int:
        try:
            return msgspec.json.decode(backend.request_json, type=cls).block_size
        except msgspec.DecodeError:
            return DEFAULT_BLOCK_BYTES  # the backend reports what is wrong with it


def _model(key: str, disk: Disk) -> dict[str, str]:
    if isinstance(disk, VirtioDisk):
        # A guest that could not write would go on with a damaged file system. Without this it stops as well when there
        # is no space left, but for good: this engine lets no such guest run on, and says why.
        return {"driver": "virtio-blk-pci", "werror": "stop"}
    serial = bytes(disk.serial_number).rstrip(b"\0")
    if not all(0x20 <= byte < 0x7F for byte in serial):
        raise InvalidSpec(f"disk {key!r}: its serial number is not printable ASCII, filled up with zero bytes")
    return {"driver": "nvme", "serial": serial.decode("ascii")}


def _boot_order(components: Mapping[str, Any]) -> dict[str, int]:
    settings = [component for component in components.values() if isinstance(component, BootSettings)]
    if len(settings) > 1:
        raise InvalidSpec("more than one component has boot settings")
    order = dict.fromkeys(entry.id for entry in settings[0].order) if settings else {}
    for key in order:
        if not isinstance(components.get(key), Disk):
            raise InvalidSpec(f"boot order names {key!r}, which is not a disk of this spec")
    # Index 0 is QEMU's own, for the kernel of a direct boot.
    return {key: position for position, key in enumerate(order, start=1)}
