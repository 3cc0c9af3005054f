"""The layout of a VM: its disks, boot source and boot order, from a configuration and an image."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from ...agent_api.boot_source import BootSource, DirectKernel, Firmware
from ...agent_api.disks import CreateDisk
from ...errors import ConfigError
from ...guests.adapter import GuestAdapter
from ...settings import ENGINE
from ..config import BOOT_DISK, CompleteVmConfig, FirmwareKind, VmConfig
from ..provisioning.guest_images import ReadyImage
from .kinds import AttachedDisk, Disk

__all__ = [
    "boot_order_of",
    "boot_source_of",
    "disks_of",
    "firmware_of",
    "has_boot_disk",
    "placed",
    "require_bootable",
    "require_enough_memory",
    "split_disks",
]

KERNEL_COMMAND_LINE_BYTES = 2047
"""The limit of x86 Linux; with a longer one it prints nothing."""

MIB: Final = 1 << 20
LOADER_HINT: Final = "choose firmware='uefi' without a boot order, or name a disk with a boot loader in boot_order"


def disks_of(config: VmConfig, image: ReadyImage) -> Iterator[tuple[AttachedDisk, CreateDisk | None]]:
    """Yield the disks, without files yet, and what they are made of; None for one in memory.

    :param config: with a slot for each device.
    """
    if image.disk is not None:
        request = CreateDisk(image=str(image.disk), image_format=image.disk_format)
        yield AttachedDisk(name=BOOT_DISK, interface=config.disk_interface, pci_slot=config.boot_disk_slot), request
    for disk in config.disks:
        yield disk.attached(), disk.request()


class SplitDisks(NamedTuple):
    """The data disks of a future fork, each with its slot, in the order of their slots.

    :param kept: those that the template has.
    :param plugged: those that are plugged into the fork.
    """

    kept: tuple[Disk, ...]
    plugged: tuple[Disk, ...]


def split_disks(config: VmConfig) -> SplitDisks:
    """Which disks a template has, and which its forks are given.

    A template has empty disks: its forks cost no more then. It has none with an image, which is one test's; none in
    memory, which is one QEMU's; and no NVMe controller, which QEMU cannot save. What sits beyond the first of these is
    plugged in, too: guests find disks in the order of their slots, then as when they boot.

    :param config: with a slot for each device.
    """
    placed = sorted(config.disks, key=lambda disk: disk.pci_slot or 0)
    number = next((index for index, disk in enumerate(placed) if not disk.in_template), len(placed))
    return SplitDisks(tuple(placed[:number]), tuple(placed[number:]))


def boot_order_of(config: VmConfig, image: ReadyImage) -> tuple[str, ...]:
    """Return the names of disks, in the order in which firmware tries them."""
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


def require_bootable(config: VmConfig, guest: GuestAdapter) -> None:
    """
    :raises ConfigError: when the guest is known not to boot as configured.
    """
    image, firmware = guest.image, firmware_of(config, guest)
    order = set(config.boot_order or ())
    has_disk = has_boot_disk(config, guest)
    if not has_disk and config.disk_interface != "virtio":
        raise _error(config, f"disk_interface has no effect: {guest.name} boots from no disk", "leave it out")
    if not has_disk and BOOT_DISK in order:
        raise _error(config, f"boot_order names {BOOT_DISK!r}, and {guest.name} boots from no disk", "name data disks")
    if firmware == "none" and image.kernel is None:
        raise _error(config, f"the guest {guest.name} has no kernel of its own", "choose firmware='bios' or 'uefi'")
    if firmware == "bios" and not _looks_for_kernel(config, guest):
        raise _error(config, f"the BIOS finds nothing to boot: {guest.name} has no boot loader", LOADER_HINT)
    if firmware != "none" and order == {BOOT_DISK} and not _has_boot_loader(config, guest):
        raise _error(config, f"boot_order names no disk with a boot loader: {guest.name} has none", LOADER_HINT)
    if config.kernel_arguments and firmware != "none" and _looks_for_kernel(config, guest):
        raise _error(config, "kernel_arguments have no effect with firmware that looks for a kernel", "leave them out")


def has_boot_disk(config: VmConfig, guest: GuestAdapter) -> bool:
    """Return whether there is a disk that it may boot from: its guest's, or one of the test's."""
    return guest.image.disk is not None or config.boot_disk is not None


def firmware_of(config: VmConfig, guest: GuestAdapter) -> FirmwareKind:
    """Return the guest's firmware: as chosen, else its adapter's, else none with a kernel, else the BIOS."""
    return config.firmware or guest.firmware or ("none" if guest.image.kernel else "bios")


def placed(complete: CompleteVmConfig, guest: GuestAdapter) -> CompleteVmConfig:
    """Return the same with its channel chosen, and with a PCI slot for every data disk and network card.

    :raises ConfigError: when the devices do not fit on the bus.
    """
    config, boots_from_disk = complete.config, has_boot_disk(complete.config, guest)
    if config.channel == "auto":
        config = dataclasses.replace(config, channel="console")
        if guest.guest_ports and complete.server == ENGINE:
            with contextlib.suppress(ConfigError):  # no room for the ports
                over_port = dataclasses.replace(config, channel="port").with_slots(has_boot_disk=boots_from_disk)
                return msgspec.structs.replace(complete, config=over_port)
    return msgspec.structs.replace(complete, config=config.with_slots(has_boot_disk=boots_from_disk))


def boot_source_of(
    config: VmConfig, guest: GuestAdapter, image: ReadyImage, *, boot_rom: str | None = None
) -> BootSource:
    """Return the boot source of a VM, which is bootable: `require_bootable`.

    :param boot_rom: path of a UEFI image on the host to use instead of the server's.
    """
    firmware = firmware_of(config, guest)
    if firmware == "none":
        return _kernel(config, guest, image)
    if _looks_for_kernel(config, guest):
        return Firmware(uefi=firmware == "uefi", boot_rom=boot_rom if firmware == "uefi" else None)
    return Firmware(uefi=True, kernel=_kernel(config, guest, image), boot_rom=boot_rom)


def _looks_for_kernel(config: VmConfig, guest: GuestAdapter) -> bool:
    """Return whether firmware looks for a boot loader on the disks, instead of starting a given kernel."""
    return config.boot_order is not None or _has_boot_loader(config, guest)


def _has_boot_loader(config: VmConfig, guest: GuestAdapter) -> bool:
    return config.boot_disk is not None or guest.image.kernel is None or guest.firmware is not None


def _kernel(config: VmConfig, guest: GuestAdapter, image: ReadyImage) -> DirectKernel:
    command_line = f"{guest.image.command_line} {config.kernel_arguments}".strip()
    if len(command_line.encode()) > KERNEL_COMMAND_LINE_BYTES:
        raise _error(
            config,
            f"the kernel's command line has {len(command_line.encode())} bytes, and Linux takes at most"
            f" {KERNEL_COMMAND_LINE_BYTES}",
            "shorten kernel_arguments",
        )
    return DirectKernel(
        kernel=str(image.kernel),
        initrd=str(image.initrd) if image.initrd else None,
        command_line=command_line,
    )


def _error(config: VmConfig, message: str, hint: str) -> ConfigError:
    return ConfigError(f"VM {config.name!r}: {message}", hint=hint)
