"""Disks of a VM beside the one that it boots from. A kind of disk is a class that derives from `Disk`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, TypeAlias

import msgspec

from ...agent_api.disks import CreateDisk
from ...errors import ArtifactMissing, ConfigError
from ...field_checks import Range, check_fields
from ...propolis_api import Component
from ...storage.host_path import host_path
from ...storage.images.overlays import presumed_format
from ..instance_spec.device_names import require_device_name
from ..instance_spec.pci_slots import PCI_SLOTS

__all__ = ["AttachedDisk", "DataDisk", "Disk", "DiskInterface", "DiskSource", "PciSlot", "as_disk"]

DiskInterface = Literal["virtio", "nvme"]
PciSlot: TypeAlias = Annotated[int, Range(PCI_SLOTS.start, PCI_SLOTS.stop - 1)]

LARGEST_DISK_MIB: Final = 1 << 24
MIB: Final = 1 << 20


class AttachedDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk as the server gets it. Its backend's key is its own name and ``-backend``.

    :param path: the file that it is in; None for one in memory.
    :param contents: what is on a disk in memory.
    :param backend: its backend, if it is neither in a file nor in memory.
    :param pci_slot: where it sits on the root bus.
    """

    name: str
    path: str | None = None
    contents: bytes | None = None
    interface: DiskInterface
    readonly: bool = False
    block_size: int = 512
    pci_slot: int
    backend: Component | None = None


class Disk:
    """A disk as a test describes it: frozen data, with the fields below, and what becomes of it.

    :ivar name: its key in the instance spec; its backend's key is this and ``-backend``.
    :ivar pci_slot: its PCI slot; None until a configuration assigns one.
    """

    __slots__ = ()

    name: str
    interface: DiskInterface
    pci_slot: int | None

    @property
    def in_template(self) -> bool:
        """Whether it is part of a template; otherwise it is hot-plugged into each fork."""
        return False

    def attached(self) -> AttachedDisk:
        """Return the disk as the server gets it, apart from a file that is still to be made. It has a slot.

        :raises ArtifactError: when its contents cannot be read.
        """
        raise NotImplementedError

    def request(self) -> CreateDisk | None:
        """Return the request to the agent that creates the disk's file; None if there is nothing to create."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDisk(Disk):
    """A disk beside the boot disk; it is removed with its VM.

    It is given by exactly one of `size_mib`, `image` and `contents`.

    :param name: its key in the instance spec; its backend's key is this and ``-backend``.
    :param size_mib: the size of an empty disk.
    :param image: an image to fork, instead of an empty disk. It must not change meanwhile.
    :param image_format: ``qcow2`` or ``raw``. Without it an image is raw, and one that looks like a container (qcow2,
        vmdk, gzip and others) is refused.
    :param contents: the content of the disk, a multiple of 512 bytes. The disk is in memory.
    :param in_memory: keep it in the server's memory, as a blob of the spec, instead of a file. An image must be raw.
    :param readonly: whether it is read-only.
    :param block_size: the size of its blocks in bytes, 512 or 4096; always 512 in memory.
    :param pci_slot: its PCI slot, 2 to 31; by default the next free slot from 4 on.
    """

    name: str
    size_mib: Annotated[int, Range(1, LARGEST_DISK_MIB)] | None = None
    image: Path | None = None
    image_format: Literal["qcow2", "raw"] | None = None
    contents: bytes | None = None
    in_memory: bool = False
    interface: DiskInterface = "virtio"
    readonly: bool = False
    block_size: Literal[512, 4096] = 512
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        image: object = self.image
        if isinstance(image, str):
            object.__setattr__(self, "image", Path(image))
        check_fields(self, subject=f"data disk {self.name!r}")
        require_device_name("data disk", self.name)
        if [self.size_mib, self.image, self.contents].count(None) != 2:
            raise self._error("give one of size_mib, image and contents")
        if self.contents is not None and (not self.contents or len(self.contents) % 512):
            raise self._error(f"contents are {len(self.contents)} bytes", "fill them up to a multiple of 512")
        if self.is_in_memory and self.block_size != 512:
            raise self._error(f"block_size is {self.block_size}", "it is 512 for a disk in memory")
        if self.is_in_memory and self.image is not None and self.image_format == "qcow2":
            raise self._error(f"a {self.image_format} image cannot be kept in memory", "convert it to raw")

    @property
    def is_in_memory(self) -> bool:
        """Whether it is a blob of the spec."""
        return self.in_memory or self.contents is not None

    @property
    def in_template(self) -> bool:
        """A disk with an image is one test's, one in memory one QEMU's, and QEMU cannot save an NVMe controller."""
        return self.interface == "virtio" and self.image is None and not self.is_in_memory

    def attached(self) -> AttachedDisk:
        assert self.pci_slot is not None
        return AttachedDisk(
            name=self.name,
            contents=self._contents() if self.is_in_memory else None,
            interface=self.interface,
            readonly=self.readonly,
            block_size=self.block_size,
            pci_slot=self.pci_slot,
        )

    def request(self) -> CreateDisk | None:
        if self.is_in_memory:
            return None
        if self.image is not None:
            return CreateDisk(
                image=self._image_path(self.image), image_format=self.image_format, block_size=self.block_size
            )
        return CreateDisk(size_bytes=(self.size_mib or 0) * MIB)

    def _contents(self) -> bytes:
        if self.image is None:
            return self.contents or bytes((self.size_mib or 0) * MIB)
        try:
            path = Path(self._image_path(self.image))
            if self.image_format is None:
                presumed_format(path)
            return path.read_bytes()
        except OSError as error:
            raise ArtifactMissing(f"data disk {self.name!r}: {error}", hint="correct the path of its image") from None

    def _image_path(self, image: Path) -> str:
        return host_path(image, purpose=f"the image of data disk {self.name!r}")

    def _error(self, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"data disk {self.name!r}: {message}", hint=hint)


class DiskSource(Protocol):
    """A disk created before its VM: a `CrucibleDisk`, an `ImageFork`."""

    def disk(self) -> Disk:
        """Return it as a VM's disk, with the default options."""


def as_disk(value: Any) -> Any:
    """Return the description of a disk that a source stands for; any other value as it is."""
    return value if isinstance(value, Disk) or not hasattr(value, "disk") else value.disk()
