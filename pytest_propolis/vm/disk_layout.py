"""What a VM is made of: its disks, what it boots from, in which order, as a configuration and an image say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..agent_api.boot_source import BootSource, DirectKernel, Firmware
from ..agent_api.messages import CreateDisk
from ..errors import ArtifactMissing, ConfigError
from ..guests.adapter import GuestAdapter
from .config import BOOT_DISK, CompleteVmConfig, DataDisk, VmConfig
from .crucible_disk import VolumeDisk
from .guest_images import ReadyImage
from .spec import FIRST_DISK_SLOT, AttachedDisk

__all__ = [
    "attached_volume",
    "boot_order_of",
    "boot_source_of",
    "data_disk",
    "disks_of",
    "require_enough_memory",
    "split_disks",
]

MIB: Final = 1 << 20


def disks_of(config: VmConfig, image: ReadyImage) -> Iterator[tuple[AttachedDisk, CreateDisk | None]]:
    """The disks, without places yet, and what they are made of; None for one in memory."""
    if image.disk is not None:
        request = CreateDisk(image=str(image.disk), image_format="qcow2")
        yield AttachedDisk(name=BOOT_DISK, path=None, interface=config.disk_interface), request
    for disk in config.further_disks:
        yield data_disk(disk)


def data_disk(disk: DataDisk | VolumeDisk) -> tuple[AttachedDisk, CreateDisk | None]:
    """A disk, without a place yet, and what it is made of; None for one that nobody needs to make.

    :raises ArtifactMissing: when its image cannot be read.
    """
    if isinstance(disk, VolumeDisk):
        return attached_volume(disk), None
    attached = AttachedDisk(
        name=disk.name,
        path=None,
        contents=_contents(disk) if disk.is_in_memory else None,
        interface=disk.interface,
        readonly=disk.readonly,
        block_size=disk.block_size,
        pci_slot=disk.pci_slot,
    )
    return attached, None if disk.is_in_memory else _disk_request(disk)


def attached_volume(disk: VolumeDisk) -> AttachedDisk:
    """A replicated disk as the server gets it, with the volume as it is now."""
    return AttachedDisk(
        name=disk.name,
        interface=disk.interface,
        readonly=disk.readonly,
        block_size=disk.block_size,
        pci_slot=disk.pci_slot,
        backend=disk.backend,
    )


class SplitDisks(NamedTuple):
    """The data disks of a VM that is to be a fork, each with its slot, in the order of their slots.

    :param kept: those that the template has.
    :param plugged: those that are plugged into the fork.
    """

    kept: tuple[DataDisk, ...]
    plugged: tuple[DataDisk | VolumeDisk, ...]


def split_disks(config: VmConfig, guest: GuestAdapter) -> SplitDisks:
    """Which disks a template has, and which its forks are given.

    A template has empty disks: its forks cost no more then. It has none with an image, which is one test's; none in
    memory, which is one QEMU's; and no NVMe controller, which QEMU cannot save. What sits beyond the first of these is
    plugged in, too: guests find disks in the order of their slots, then as when they boot.
    """
    first = FIRST_DISK_SLOT + (guest.image.disk is not None)
    placed = sorted(
        (
            dataclasses.replace(disk, pci_slot=first + number if disk.pci_slot is None else disk.pci_slot)
            for number, disk in enumerate(config.further_disks)
        ),
        key=lambda disk: disk.pci_slot or 0,
    )
    number = next((index for index, disk in enumerate(placed) if not _can_be_kept(disk)), len(placed))
    kept = tuple(disk for disk in placed[:number] if isinstance(disk, DataDisk))
    return SplitDisks(kept, tuple(placed[number:]))


def _can_be_kept(disk: DataDisk | VolumeDisk) -> bool:
    return isinstance(disk, DataDisk) and disk.interface == "virtio" and disk.image is None and not disk.is_in_memory


def _disk_request(disk: DataDisk) -> CreateDisk:
    if disk.image is not None:
        return CreateDisk(image=str(disk.image), image_format=disk.image_format)
    return CreateDisk(size_bytes=(disk.size_mib or 0) * MIB)


def _contents(disk: DataDisk) -> bytes:
    if disk.image is None:
        return disk.contents or bytes((disk.size_mib or 0) * MIB)
    try:
        return disk.image.read_bytes()
    except OSError as error:
        raise ArtifactMissing(f"data disk {disk.name!r}: {error}", hint="correct the path of its image") from None


def boot_order_of(config: VmConfig, image: ReadyImage) -> tuple[str, ...]:
    """The names of disks, in the order in which firmware tries them."""
    if config.boot_order is not None:
        return config.boot_order
    return (BOOT_DISK,) if image.disk else ()


def require_enough_memory(complete: CompleteVmConfig, guest: GuestAdapter) -> None:
    """
    :raises ConfigError: when a guest is known not to come up with so little memory.
    """
    if complete.memory_mib < guest.minimum_memory_mib:
        raise ConfigError(
            f"VM {complete.config.name!r}: {complete.memory_mib} MiB of memory are too few for {guest.name}",
            hint=f"give it at least {guest.minimum_memory_mib} MiB",
        )


def boot_source_of(config: VmConfig, guest: GuestAdapter, image: ReadyImage) -> BootSource:
    """What the VM starts from.

    :raises ConfigError: when the guest has no kernel to be loaded, or kernel arguments would have no effect.
    """
    wanted = config.firmware or ("none" if image.kernel else "bios")
    if wanted == "none":
        if image.kernel is None:
            raise ConfigError(f"the guest {guest.name} has no kernel of its own", hint="choose a firmware")
        command_line = f"{guest.image.command_line} {config.kernel_arguments}".strip()
        return DirectKernel(
            kernel=str(image.kernel),
            initrd=str(image.initrd) if image.initrd else None,
            command_line=command_line,
        )
    if config.kernel_arguments:
        raise ConfigError(f"VM {config.name!r}: kernel_arguments have no effect with firmware")
    if wanted == "uefi":
        return Firmware(uefi=True)
    return Firmware()
