"""The configuration of a VM."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, TypedDict

import msgspec

from ..errors import ConfigError
from ..field_checks import Range, check_fields
from ..propolis_api import Cpuid, HyperVFeatureFlag
from ..settings import BootKind, ChannelKind, Settings
from .disks.kinds import DataDisk, Disk, DiskInterface, DiskSource, PciSlot, as_disk
from .instance_spec.device_names import BOOT_DISK, NAME, NAME_HINT, require_device_name
from .instance_spec.pci_slots import (
    BOOT_DISK_CANDIDATES,
    DISK_CANDIDATES,
    DISPLAY_SLOT,
    GUEST_PORTS_SLOT,
    NIC_CANDIDATES,
    SlotRequest,
    assign_slots,
)
from .networks.network import Network

__all__ = ["BOOT_DISK", "DataDisk", "DiskInterface", "Nic", "VmConfig", "VmConfigFields"]

FirmwareKind = Literal["none", "bios", "uefi"]

FailureCount: TypeAlias = Annotated[int, Range(0, (1 << 32) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A virtio network card.

    :param name: its key in the instance spec.
    :param link: what it is plugged into, by the server's name for it. With QEMU: ``user`` (reaches what the host
        reaches), ``user:isolated`` (reaches nothing), ``unix:PATH`` (a switch listening on a UNIX socket),
        ``multicast:ADDRESS:PORT`` (all VMs of this host that name the same). With propolis-server: a VNIC.
    :param network: the network between VMs that it is plugged into instead; the guest gets an address there when it has
        booted.
    :param pci_slot: where it sits on the PCI bus, 2 to 31; by default the next free slot from 16 on.
    """

    name: str = "nic"
    link: str = "user:isolated"
    network: Network | None = None
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"network card {self.name!r}")
        require_device_name("network card", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """The configuration of a VM. Omitted fields come from the settings.

    :param name: unique within the test; names the log files.
    :param guest: the guest to boot.
    :param cpus: virtual CPUs.
    :param memory_mib: memory in MiB.
    :param boot: ``warm``: a fork of a guest that was booted once, where that can be; ``cold``: it boots.
    :param boot_timeout_s: seconds until the guest must have booted and logged in.
    :param disk_interface: how the guest sees the disk that it boots from.
    :param boot_disk: what the disk that it boots from is forked from, instead of the guest's own image: the name of an
        artifact, or a path; the format is as in `ImageDisk`.
    :param disks: further disks; a `CrucibleDisk` or `ImageFork` may stand for its own `disk()`.
    :param boot_order: names of disks, in the order in which firmware tries them; the boot disk alone by default.
    :param firmware: what boots the guest: ``none`` (its kernel is loaded by the server), ``bios`` or ``uefi``. UEFI
        starts the guest's own kernel, if it has one, unless the adapter says that it boots its disk, or a boot order is
        given. By default what the guest's adapter says.
    :param kernel_arguments: what to add to the kernel's parameters.
    :param nics: network cards.
    :param cpuid: what the guest's CPUID instruction returns; the server's choice by default.
    :param hyper_v: the Hyper-V enlightenments that the guest sees, maybe none; by default it sees no Hyper-V at all.
    :param display: whether the VM has a display, for `TestVm.screenshot`. Not part of the spec.
    :param channel: how commands, files and streams reach the guest: ``console``, over its serial console, or ``port``,
        over guest ports that its agent adds to the machine. ``auto`` is ports where the guest's adapter says that its
        kernel has the driver, the engine serves the VM, and PCI slot 30 is free. Not part of the spec.
    :param server: what serves it: ``engine``, the path of a program with the command line of ``propolis-server``, the
        name of such an artifact, or ``http://IP:PORT`` of a server that runs already and has no VM.
    :param boot_rom: the UEFI image that it boots from with ``firmware="uefi"``: a path, or the name of an artifact.
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
    boot_disk: str | Path | None = None
    disks: tuple[Disk, ...] = ()
    boot_order: tuple[str, ...] | None = None
    firmware: FirmwareKind | None = None
    kernel_arguments: str = ""
    nics: tuple[Nic, ...] = ()
    cpuid: Cpuid | None = None
    hyper_v: tuple[HyperVFeatureFlag, ...] | None = None
    display: bool = False
    channel: ChannelKind | None = None
    server: str | Path | None = None
    boot_rom: str | Path | None = None
    fail_migration_exports: FailureCount | None = None
    fail_migration_imports: FailureCount | None = None

    def __post_init__(self) -> None:
        disks: object = self.disks
        if isinstance(disks, tuple):
            object.__setattr__(self, "disks", tuple(map(as_disk, disks)))
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
                raise self._error(f"boot_order names {name!r}, not a disk of this VM", f"its disks are {known}")
        self._slots(has_boot_disk=False)

    def with_slots(self, *, has_boot_disk: bool) -> VmConfig:
        """Return the same with a PCI slot for every data disk and network card.

        :raises ConfigError: when the devices do not fit on the bus.
        """
        slots = iter(self._slots(has_boot_disk=has_boot_disk)[int(has_boot_disk) :])
        disks = tuple(dataclasses.replace(disk, pci_slot=next(slots)) for disk in self.disks)  # type: ignore[type-var]
        nics = tuple(dataclasses.replace(nic, pci_slot=next(slots)) for nic in self.nics)
        return dataclasses.replace(self, disks=disks, nics=nics)

    @property
    def boot_disk_slot(self) -> int:
        """The slot of the disk that the guest boots from: PHD's, else a free one before it, else one after it."""
        return self._slots(has_boot_disk=True)[0]

    @property
    def has_ports(self) -> bool:
        """Whether the machine has guest ports."""
        return self.channel == "port"

    def _slots(self, *, has_boot_disk: bool) -> list[int]:
        reserved = {DISPLAY_SLOT: "the display"} if self.display else {}
        if self.has_ports:
            reserved[GUEST_PORTS_SLOT] = "the guest ports"
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
            config=dataclasses.replace(self, channel=self.channel or settings.channel),
            guest=self.guest or settings.guest,
            cpus=self.cpus or settings.cpus,
            memory_mib=self.memory_mib or settings.memory_mib,
            boot=self.boot or settings.boot,
            boot_timeout_s=self.boot_timeout_s or settings.boot_timeout,
            server=self.server or settings.server,
            boot_rom=self.boot_rom or settings.boot_rom,
        )

    def _error(self, message: str, hint: str) -> ConfigError:
        return ConfigError(f"VM {self.name!r}: {message}", hint=hint)


class CompleteVmConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A VmConfig with nothing left open."""

    config: VmConfig
    guest: str
    cpus: int
    memory_mib: int
    boot: BootKind
    boot_timeout_s: float
    server: str | Path
    boot_rom: str | Path | None


class VmConfigFields(TypedDict, total=False):
    """The options of `VmFactory.start` and `VmFactory.create`, for editors and type checkers: all fields of `VmConfig`
    except its name."""

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
