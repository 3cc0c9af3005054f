"""What a test wants of a VM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..errors import ConfigError
from ..settings import BootKind, Settings

__all__ = ["BOOT_DISK", "DataDisk", "DiskInterface", "VmConfig"]

DiskInterface = Literal["virtio", "nvme"]
FirmwareKind = Literal["none", "bios", "uefi"]

BOOT_DISK: Final = "boot-disk"
"""The name of the disk that holds the guest's system, as in PHD."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDisk:
    """A disk beside the one that the guest boots from; gone with its VM.

    :param name: its key in the instance spec.
    :param size_mib: the size of an empty disk.
    :param image: an image to fork, instead of an empty disk. It must not change meanwhile.
    :param image_format: ``qcow2`` or ``raw``.
    """

    name: str
    size_mib: int | None = None
    image: Path | None = None
    image_format: Literal["qcow2", "raw"] = "raw"
    interface: DiskInterface = "virtio"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name == BOOT_DISK:
            raise ConfigError(f"data disk: {self.name!r} cannot be its name", hint=f"not {BOOT_DISK!r}; {NAME.pattern}")
        if (self.size_mib is None) == (self.image is None):
            raise ConfigError(f"data disk {self.name!r}: give either size_mib or image")
        if self.size_mib is not None and self.size_mib < 1:
            raise ConfigError(f"data disk {self.name!r}: size_mib is {self.size_mib}", hint="it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """A VM to be made. What is not given comes from the settings.

    :param name: unique within the test; names the log files.
    :param guest: the guest to boot.
    :param cpus: virtual CPUs.
    :param memory_mib: memory in MiB.
    :param boot: how it boots.
    :param boot_timeout_s: seconds until the guest must have booted and logged in.
    :param disk_interface: how the guest sees the disk that it boots from.
    :param disks: further disks.
    :param boot_order: names of disks, in the order in which firmware tries them; the boot disk alone by default.
    :param firmware: what boots a guest that comes without a kernel, or, if given, one that comes with one.
    :param kernel_arguments: what to add to the kernel's parameters.
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
    disks: tuple[DataDisk, ...] = ()
    boot_order: tuple[str, ...] | None = None
    firmware: FirmwareKind | None = None
    kernel_arguments: str = ""
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
        if self.disk_interface not in ("virtio", "nvme"):
            raise self._error(f"disk_interface is {self.disk_interface!r}", "it is 'virtio' or 'nvme'")
        names = [disk.name for disk in self.disks]
        for name in names:
            if names.count(name) > 1:
                raise self._error(f"two disks are named {name!r}", "give each disk its own name")
        for name in self.boot_order or ():
            if name not in (BOOT_DISK, *names):
                known = ", ".join((BOOT_DISK, *names))
                raise self._error(f"boot_order names {name!r}, which is no disk of this VM", f"its disks are {known}")

    def completed(self, settings: Settings) -> CompleteVmConfig:
        """With the settings for all that was not given."""
        return CompleteVmConfig(
            config=self,
            guest=self.guest or settings.guest,
            cpus=self.cpus or settings.cpus,
            memory_mib=self.memory_mib or settings.memory_mib,
            boot_timeout_s=self.boot_timeout_s or settings.boot_timeout,
        )

    def _require_range(self, what: str, value: int | None, low: int, high: int) -> None:
        if value is not None and not low <= value <= high:
            raise self._error(f"{what} is {value}", f"it must be from {low} to {high}")

    def _error(self, message: str, hint: str) -> ConfigError:
        return ConfigError(f"VM {self.name!r}: {message}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteVmConfig:
    """A VmConfig with nothing left open."""

    config: VmConfig
    guest: str
    cpus: int
    memory_mib: int
    boot_timeout_s: float
