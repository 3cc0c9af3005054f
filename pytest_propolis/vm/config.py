"""What a test wants of a VM."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

from ..errors import ConfigError
from ..field_checks import Range, check_fields
from ..propolis_api import Cpuid, HyperVFeatureFlag, SerialPortNumber
from ..settings import BootKind, Settings
from .pci_slots import (
    BOOT_DISK_CANDIDATES,
    DISK_CANDIDATES,
    DISPLAY_SLOT,
    NIC_CANDIDATES,
    PCI_SLOTS,
    SlotRequest,
    assign_slots,
)

__all__ = ["BOOT_DISK", "DataDisk", "DiskInterface", "Nic", "VmConfig"]

DiskInterface = Literal["virtio", "nvme"]
FirmwareKind = Literal["none", "bios", "uefi"]

BOOT_DISK: Final = "boot-disk"
"""The name of the disk that holds the guest's system, as in PHD."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

NAME_HINT: Final = "letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit"

BOOT_SETTINGS: Final = "boot-settings"
FAILURE_INJECTOR: Final = "migration-failure"
BACKEND_SUFFIX: Final = "-backend"

RESERVED_KEYS: Final = frozenset(
    (BOOT_DISK, BOOT_SETTINGS, FAILURE_INJECTOR, *(number.value for number in SerialPortNumber))
)
"""The keys of components that every spec may have: no device of a test can have one of these names."""


PciSlot: TypeAlias = Annotated[int, Range(PCI_SLOTS.start, PCI_SLOTS.stop - 1)]
FailureCount: TypeAlias = Annotated[int, Range(0, (1 << 32) - 1)]

LARGEST_DISK_MIB: Final = 1 << 24


def _require_device_name(kind: str, name: str) -> None:
    """
    :raises ConfigError: when a device's name is malformed, or the key of another component of the spec.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{kind}: {name!r} cannot be its name", hint=NAME_HINT)
    if name in RESERVED_KEYS or name.endswith(BACKEND_SUFFIX):
        raise ConfigError(
            f"{kind}: {name!r} cannot be its name: the instance spec uses it for another component",
            hint=f"not {', '.join(sorted(RESERVED_KEYS))}, nor anything that ends in {BACKEND_SUFFIX}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDisk:
    """A disk beside the one that the guest boots from; gone with its VM.

    It is given by exactly one of `size_mib`, `image` and `contents`.

    :param name: its key in the instance spec; its backend's key is this and ``-backend``.
    :param size_mib: the size of an empty disk.
    :param image: an image to fork, instead of an empty disk. It must not change meanwhile.
    :param image_format: ``qcow2`` or ``raw``. Without it an image is raw, and one that looks like a container (qcow2,
        vmdk, gzip and others) is refused.
    :param contents: what is on the disk, a multiple of 512 bytes. The disk is in memory.
    :param in_memory: keep it in the server's memory, as a blob of the spec, instead of a file. An image must be raw.
    :param readonly: whether the guest can only read it.
    :param block_size: the size of its blocks in bytes, 512 or 4096; always 512 in memory.
    :param pci_slot: where it sits on the PCI bus, 2 to 31; by default the next free slot from 4 on.
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
        _require_device_name("data disk", self.name)
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

    def _error(self, message: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"data disk {self.name!r}: {message}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A virtio network card.

    :param name: its key in the instance spec.
    :param link: what it is plugged into, by the server's name for it. With QEMU: ``user`` (reaches what the host
        reaches), ``user:isolated`` (reaches nothing), ``unix:PATH`` (a switch listening on a UNIX socket),
        ``multicast:ADDRESS:PORT`` (all VMs of this host that name the same). With propolis-server: a VNIC.
    :param pci_slot: where it sits on the PCI bus, 2 to 31; by default the next free slot from 16 on.
    """

    name: str = "nic"
    link: str = "user:isolated"
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"network card {self.name!r}")
        _require_device_name("network card", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """A VM to be made. What is not given comes from the settings.

    :param name: unique within the test; names the log files.
    :param guest: the guest to boot.
    :param cpus: virtual CPUs.
    :param memory_mib: memory in MiB.
    :param boot: ``warm``: a fork of a guest that was booted once, where that can be; ``cold``: it boots.
    :param boot_timeout_s: seconds until the guest must have booted and logged in.
    :param disk_interface: how the guest sees the disk that it boots from.
    :param disks: further disks.
    :param boot_order: names of disks, in the order in which firmware tries them; the boot disk alone by default.
    :param firmware: what boots the guest: ``none`` (its kernel is loaded by the server), ``bios`` or ``uefi``. UEFI
        starts the guest's own kernel, if it has one, unless the adapter says that it boots its disk, or a boot order is
        given. By default what the guest's adapter says.
    :param kernel_arguments: what to add to the kernel's parameters.
    :param nics: network cards.
    :param cpuid: what the guest's CPUID instruction returns; the server's choice by default.
    :param hyper_v: the Hyper-V enlightenments that the guest sees, maybe none; by default it sees no Hyper-V at all.
    :param display: whether the VM has a display, for `TestVm.screenshot`. Not part of the spec.
    :param fail_migration_exports: how many migrations out of this VM fail on purpose.
    :param fail_migration_imports: how many migrations into this VM fail on purpose.
    :raises ConfigError: when a value is impossible, naming it.
    """

    name: str = "vm"
    guest: str | None = None
    cpus: Annotated[int, Range(1, 64)] | None = None
    memory_mib: Annotated[int, Range(16, 1 << 20)] | None = None
    boot: BootKind | None = None
    boot_timeout_s: Annotated[float, Range(0, exclusive=True)] | None = None
    disk_interface: DiskInterface = "virtio"
    disks: tuple[DataDisk, ...] = ()
    boot_order: tuple[str, ...] | None = None
    firmware: FirmwareKind | None = None
    kernel_arguments: str = ""
    nics: tuple[Nic, ...] = ()
    cpuid: Cpuid | None = None
    hyper_v: tuple[HyperVFeatureFlag, ...] | None = None
    display: bool = False
    fail_migration_exports: FailureCount | None = None
    fail_migration_imports: FailureCount | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"VM {self.name!r}")
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} cannot be the name of a VM", hint=NAME_HINT)
        names = [disk.name for disk in self.disks]
        for name in names:
            if names.count(name) > 1:
                raise self._error(f"two disks are named {name!r}", "give each disk its own name")
        devices = [BOOT_DISK, *names, *(nic.name for nic in self.nics)]
        for name in devices:
            if devices.count(name) > 1:
                raise self._error(f"two devices are named {name!r}", "give each device its own name")
        for name in self.boot_order or ():
            if name not in (BOOT_DISK, *names):
                known = ", ".join((BOOT_DISK, *names))
                raise self._error(f"boot_order names {name!r}, which is no disk of this VM", f"its disks are {known}")
        self._slots(has_boot_disk=False)

    def with_slots(self, *, has_boot_disk: bool) -> VmConfig:
        """Return the same with a PCI slot for every data disk and network card.

        :raises ConfigError: when the devices do not fit on the bus.
        """
        slots = iter(self._slots(has_boot_disk=has_boot_disk)[int(has_boot_disk) :])
        disks = tuple(dataclasses.replace(disk, pci_slot=next(slots)) for disk in self.disks)
        nics = tuple(dataclasses.replace(nic, pci_slot=next(slots)) for nic in self.nics)
        return dataclasses.replace(self, disks=disks, nics=nics)

    @property
    def boot_disk_slot(self) -> int:
        """The slot of the disk that the guest boots from: PHD's, else a free one before it, else one after it."""
        return self._slots(has_boot_disk=True)[0]

    def _slots(self, *, has_boot_disk: bool) -> list[int]:
        reserved = {DISPLAY_SLOT: "the display"} if self.display else {}
        try:
            return assign_slots(self._slot_requests(has_boot_disk), reserved=reserved)
        except ConfigError as error:
            raise error.with_context(vm=self.name) from None

    def _slot_requests(self, has_boot_disk: bool) -> Iterator[SlotRequest]:
        if has_boot_disk:
            yield SlotRequest(BOOT_DISK, None, BOOT_DISK_CANDIDATES)
        for disk in self.disks:
            yield SlotRequest(disk.name, disk.pci_slot, DISK_CANDIDATES)
        for nic in self.nics:
            yield SlotRequest(nic.name, nic.pci_slot, NIC_CANDIDATES)

    def completed(self, settings: Settings) -> CompleteVmConfig:
        """With the settings for all that was not given."""
        return CompleteVmConfig(
            config=self,
            guest=self.guest or settings.guest,
            cpus=self.cpus or settings.cpus,
            memory_mib=self.memory_mib or settings.memory_mib,
            boot=self.boot or settings.boot,
            boot_timeout_s=self.boot_timeout_s or settings.boot_timeout,
        )

    def _error(self, message: str, hint: str) -> ConfigError:
        return ConfigError(f"VM {self.name!r}: {message}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteVmConfig:
    """A VmConfig with nothing left open."""

    config: VmConfig
    guest: str
    cpus: int
    memory_mib: int
    boot: BootKind
    boot_timeout_s: float
