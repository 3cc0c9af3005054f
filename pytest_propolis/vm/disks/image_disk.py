"""A disk that is forked from an artifact."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import ConfigError
from ...field_checks import check_fields
from ...storage.artifacts import Artifact
from ..instance_spec.device_names import require_device_name
from .kinds import AttachedDisk, DataDisk, Disk, DiskInterface, PciSlot

__all__ = ["ImageDisk", "ImageFormat", "image_format_of"]

ImageFormat = Literal["qcow2", "raw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDisk(Disk):
    """A fork of an image, as a disk beside the boot disk; it is removed with its VM.

    :param artifact: the name of an artifact in a catalog; the name of a guest, whose disk is forked; an artifact; the
        path of an image. It must not change meanwhile.
    :param name: its key in the instance spec; its backend's key is this and ``-backend``. By default the name of the
        artifact, or the path's without its ending.
    :param image_format: ``qcow2`` or ``raw``; by default raw for a name that ends in ``.raw`` or ``.img``, and one
        that looks like a container is refused; else qcow2.
    :param readonly: whether the guest can only read it.
    :param block_size: the size of its blocks in bytes.
    :param pci_slot: where it sits on the PCI bus, 2 to 31; by default the next free slot from 4 on.
    """

    artifact: str | Path | Artifact = field(kw_only=False)
    name: str = ""
    image_format: ImageFormat | None = None
    interface: DiskInterface = "virtio"
    readonly: bool = False
    block_size: Literal[512, 4096] = 512
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        if not self.name and isinstance(self.artifact, str | Path):
            object.__setattr__(self, "name", Path(self.artifact).stem)
        check_fields(self, subject=f"image disk {self.name!r}")
        if not self.name:
            raise ConfigError("the disk of an artifact needs a name", hint="give ImageDisk(…, name=…)")
        require_device_name("image disk", self.name)

    def as_data_disk(self, image: Path, *, image_format: ImageFormat | None) -> DataDisk:
        """Return the same disk, of an image that is on the host."""
        return DataDisk(
            name=self.name,
            image=image,
            image_format=image_format,
            interface=self.interface,
            readonly=self.readonly,
            block_size=self.block_size,
            pci_slot=self.pci_slot,
        )

    def attached(self) -> AttachedDisk:
        raise NotImplementedError("its image is to be found first: `as_data_disk`")


def image_format_of(path: str) -> ImageFormat | None:
    """Return the format that the name of an image says.

    :return: None for raw, unless the image looks like a container: distributions name qcow2 images ``.img``, too.
    """
    return None if path.endswith((".raw", ".img")) else "qcow2"
