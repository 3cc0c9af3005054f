"""Disks in memory whose file system is made from files that a test gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from ...errors import ArtifactMissing, ConfigError
from ...field_checks import Range, check_fields
from ...storage.images.fat12 import LARGEST_BYTES, SMALLEST_BYTES, fat12_image
from ...storage.images.iso9660 import iso9660_image
from ..instance_spec.device_names import require_device_name
from .kinds import AttachedDisk, Disk, DiskInterface, PciSlot

__all__ = ["SECTOR", "CloudInitDisk", "FatDisk"]

SECTOR: Final = 512
CLOUD_INIT_LABEL: Final = "cidata"

Contents = str | bytes | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FatDisk(Disk):
    """A disk in memory with a FAT12 file system.

    :param files: what is in its root directory, by name: text, bytes, or the path of a file to copy. Names can be long.
    :param label: the label of the file system, at most 11 characters: capital letters, digits, ``-`` and ``_``.
    :param size_kib: the size of the disk, 21 to 1024.
    :param name: its key in the instance spec; its backend's key is this and ``-backend``.
    :param readonly: whether the guest can only read it.
    :param pci_slot: where it sits on the PCI bus, 2 to 31; by default the next free slot from 4 on.
    """

    files: Mapping[str, Contents] = field(default_factory=dict, hash=False)
    label: str = "PROPOLIS"
    size_kib: Annotated[int, Range(SMALLEST_BYTES // 1024, LARGEST_BYTES // 1024)] = LARGEST_BYTES // 1024
    name: str = "fat"
    interface: DiskInterface = "virtio"
    readonly: bool = False
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"FAT disk {self.name!r}")
        require_device_name("FAT disk", self.name)
        self.contents()

    def attached(self) -> AttachedDisk:
        return _in_memory(self, self.contents())

    def contents(self) -> bytes:
        """Return the bytes of the disk.

        :raises ConfigError: when the files do not fit, or cannot have their names.
        :raises ArtifactMissing: when a file to copy cannot be read.
        """
        try:
            contents = {name: _bytes(value) for name, value in self.files.items()}
            return fat12_image(contents, size_bytes=self.size_kib * 1024 // SECTOR * SECTOR, label=self.label)
        except (ConfigError, ArtifactMissing) as error:
            raise type(error)(f"FAT disk {self.name!r}: {error.message}", hint=error.hint) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudInitDisk(Disk):
    """A seed for cloud-init (data source NoCloud): an ISO 9660 disk in memory that the guest can only read.

    :param user_data: what begins with ``#cloud-config`` or ``#!``, as a rule.
    :param meta_data: YAML; by default an instance id that follows from the other parameters, so that cloud-init runs
        again when they change.
    :param network_config: YAML; none by default.
    :param name: its key in the instance spec; its backend's key is this and ``-backend``.
    :param pci_slot: where it sits on the PCI bus, 2 to 31; by default the next free slot from 4 on.
    """

    user_data: str
    meta_data: str | None = None
    network_config: str | None = None
    name: str = CLOUD_INIT_LABEL
    interface: DiskInterface = "virtio"
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"cloud-init disk {self.name!r}")
        require_device_name("cloud-init disk", self.name)

    @property
    def readonly(self) -> bool:
        """Whether it is read-only: always."""
        return True

    def attached(self) -> AttachedDisk:
        """Return the disk as the server gets it.

        :raises CapabilityMissing: when pycdlib is not installed (extra ``iso``).
        """
        files = {"user-data": self.user_data, "meta-data": self.meta_data or self._meta_data()}
        if self.network_config is not None:
            files["network-config"] = self.network_config
        encoded = {name: text.encode() for name, text in files.items()}
        return _in_memory(self, iso9660_image(encoded, label=CLOUD_INIT_LABEL))

    def _meta_data(self) -> str:
        given = "\0".join((self.user_data, self.network_config or ""))
        return f"instance-id: {hashlib.sha256(given.encode()).hexdigest()[:16]}\n"


def _in_memory(disk: FatDisk | CloudInitDisk, image: bytes) -> AttachedDisk:
    assert disk.pci_slot is not None
    return AttachedDisk(
        name=disk.name, contents=image, interface=disk.interface, readonly=disk.readonly, pci_slot=disk.pci_slot
    )


def _bytes(contents: Contents) -> bytes:
    if isinstance(contents, bytes):
        return contents
    if isinstance(contents, str):
        return contents.encode()
    try:
        return contents.read_bytes()
    except OSError as error:
        raise ArtifactMissing(str(error), hint="correct the path of the file") from None
