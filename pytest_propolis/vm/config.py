"""What a test wants of a VM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ..errors import ConfigError
from ..propolis_api import Cpuid, HyperVFeatureFlag
from ..settings import BootKind, Settings

if TYPE_CHECKING:
    from .crucible_disk import CrucibleDisk, VolumeDisk

__all__ = ["BOOT_DISK", "DataDisk", "DiskInterface", "Nic", "VmConfig"]

DiskInterface = Literal["virtio", "nvme"]
FirmwareKind = Literal["none", "bios", "uefi"]

BOOT_DISK: Final = "boot-disk"
"""The name of the disk that holds the guest's system, as in PHD."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


PCI_SLOTS: Final = range(2, 32)
"""Those that a device can have; the ones below belong to the chipset."""

SLOT_HINT: Final = "slots go from 2 to 31; 0 and 1 belong to the chipset"

BLOCK_SIZES: Final = (512, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDisk:
    """A disk beside the one that the guest boots from; gone with its VM.

    It is given by exactly one of `size_mib`, `image` and `contents`.

    :param name: its key in the instance spec.
    :param size_mib: the size of an empty disk.
    :param image: an image to fork, instead of an empty disk. It must not change meanwhile.
    :param image_format: ``qcow2`` or ``raw``.
    :param contents: what is on the disk, a multiple of 512 bytes. The disk is in memory.
    :param in_memory: keep it in the server's memory, as a blob of the spec, instead of a file. An image must be raw.
    :param readonly: whether the guest can only read it.
    :param block_size: the size of its blocks in bytes, 512 or 4096; always 512 in memory.
    :param pci_slot: where it sits on the PCI bus; the next slot from 4 on by default.
    """

    name: str
    size_mib: int | None = None
    image: Path | None = None
    image_format: Literal["qcow2", "raw"] = "raw"
    contents: bytes | None = None
    in_memory: bool = False
    interface: DiskInterface = "virtio"
    readonly: bool = False
    block_size: int = 512
    pci_slot: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name == BOOT_DISK:
            raise ConfigError(f"data disk: {self.name!r} cannot be its name", hint=f"not {BOOT_DISK!r}; {NAME.pattern}")
        if [self.size_mib, self.image, self.contents].count(None) != 2:
            raise self._error("give one of size_mib, image and contents")
        if self.size_mib is not None and self.size_mib < 1:
            raise self._error(f"size_mib is {self.size_mib}", "it must be at least 1")
        if self.contents is not None and (not self.contents or len(self.contents) % 512):
            raise self._error(f"contents are {len(self.contents)} bytes", "fill them up to a multiple of 512")
        if self.block_size not in BLOCK_SIZES or (self.is_in_memory and self.block_size != BLOCK_SIZES[0]):
            raise self._error(f"block_size is {self.block_size}", "it is 512, or, for a disk in a file, 4096")
        if self.is_in_memory and self.image is not None and self.image_format != "raw":
            raise self._error(f"a {self.image_format} image cannot be kept in memory", "convert it to raw")
        if self.pci_slot is not None and self.pci_slot not in PCI_SLOTS:
            raise self._error(f"pci_slot is {self.pci_slot}", SLOT_HINT)

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
    :param pci_slot: where it sits on the PCI bus; the next slot from 16 on by default.
    """

    name: str = "nic"
    link: str = "user:isolated"
    pci_slot: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"network card: {self.name!r} cannot be its name", hint=NAME.pattern)
        if self.pci_slot is not None and self.pci_slot not in PCI_SLOTS:
            raise ConfigError(f"network card {self.name!r}: pci_slot is {self.pci_slot}", hint=SLOT_HINT)


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
    :param disks: further disks; a `CrucibleDisk` may stand for its own `disk()`.
    :param boot_order: names of disks, in the order in which firmware tries them; the boot disk alone by default.
    :param firmware: what boots a guest that comes without a kernel, or, if given, one that comes with one.
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
    cpus: int | None = None
    memory_mib: int | None = None
    boot: BootKind | None = None
    boot_timeout_s: float | None = None
    disk_interface: DiskInterface = "virtio"
    disks: tuple[DataDisk | VolumeDisk | CrucibleDisk, ...] = ()
    boot_order: tuple[str, ...] | None = None
    firmware: FirmwareKind | None = None
    kernel_arguments: str = ""
    nics: tuple[Nic, ...] = ()
    cpuid: Cpuid | None = None
    hyper_v: tuple[HyperVFeatureFlag, ...] | None = None
    display: bool = False
    fail_migration_exports: int | None = None
    fail_migration_imports: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} cannot be the name of a VM",
                hint="letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit",
            )
        self._require_range("cpus", self.cpus, 1, 64)
        self._require_range("memory_mib", self.memory_mib, 16, 1 << 20)
        if self.boot not in (None, "warm", "cold"):
            raise self._error(f"boot is {self.boot!r}", "it is 'warm' or 'cold'")
        if self.disk_interface not in ("virtio", "nvme"):
            raise self._error(f"disk_interface is {self.disk_interface!r}", "it is 'virtio' or 'nvme'")
        names = [disk.name for disk in self.further_disks]
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

    @property
    def further_disks(self) -> tuple[DataDisk | VolumeDisk, ...]:
        """`disks`, all of them as descriptions."""
        return tuple(_as_disk(disk) for disk in self.disks)

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

    def _require_range(self, what: str, value: int | None, low: int, high: int) -> None:
        if value is not None and not low <= value <= high:
            raise self._error(f"{what} is {value}", f"it must be from {low} to {high}")

    def _error(self, message: str, hint: str) -> ConfigError:
        return ConfigError(f"VM {self.name!r}: {message}", hint=hint)


def _as_disk(disk: Any) -> Any:
    """A disk that was made before, such as a `CrucibleDisk`, stands for itself with its default options."""
    return disk if isinstance(disk, DataDisk) or not hasattr(disk, "disk") else disk.disk()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteVmConfig:
    """A VmConfig with nothing left open."""

    config: VmConfig
    guest: str
    cpus: int
    memory_mib: int
    boot: BootKind
    boot_timeout_s: float
