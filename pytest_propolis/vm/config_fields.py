"""The fields of a `VmConfig` as keyword arguments, for editors and type checkers."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from ..propolis_api import Cpuid, HyperVFeatureFlag
from ..settings import BootKind, ChannelKind
from .config import DiskInterface, FirmwareKind, Nic
from .disks.kinds import Disk, DiskSource

__all__ = ["VmConfigFields"]


class VmConfigFields(TypedDict, total=False):
    """The options of `VmFactory.start` and `VmFactory.create`: all fields of `VmConfig` except its name."""

    guest: str | None
    cpus: int | None
    memory_mib: int | None
    boot: BootKind | None
    boot_timeout_s: float | None
    disk_interface: DiskInterface
    boot_disk: str | Path | None
    disks: tuple[Disk | DiskSource, ...]
    boot_order: tuple[str, ...] | None
    firmware: FirmwareKind | None
    kernel_arguments: str
    nics: tuple[Nic, ...]
    cpuid: Cpuid | None
    hyper_v: tuple[HyperVFeatureFlag, ...] | None
    display: bool
    channel: ChannelKind | None
    server: str | Path | None
    boot_rom: str | Path | None
    fail_migration_exports: int | None
    fail_migration_imports: int | None
