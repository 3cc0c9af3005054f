"""The devices that a guest sees. Each names where it sits and, by key, the backend that serves it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct

from ..errors import ConfigError
from .integers import Uint8, Uint32, Uint64, require_uint64

__all__ = [
    "BootOrderEntry",
    "BootSettings",
    "MigrationFailureInjector",
    "NvmeDisk",
    "P9fs",
    "PciPath",
    "PciPciBridge",
    "QemuPvpanic",
    "SerialPort",
    "SerialPortNumber",
    "SoftNpuP9",
    "SoftNpuPciPort",
    "SoftNpuPort",
    "SpecKey",
    "VirtioDisk",
    "VirtioNic",
    "VirtioSocket",
    "nvme_serial_number",
]

SpecKey = str
"""The key of a component in a spec: a UUID or any other name, which are one string on the wire."""

_NVME_SERIAL_BYTES: Final = 20


class PciPath(Struct, frozen=True, kw_only=True):
    """The location of a device on the PCI buses."""

    bus: Uint8
    device: Uint8
    function: Uint8


class VirtioDisk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A virtio-block disk."""

    backend_id: SpecKey
    pci_path: PciPath


class NvmeDisk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An NVMe disk. Its serial number is exactly 20 bytes: see `nvme_serial_number`."""

    backend_id: SpecKey
    pci_path: PciPath
    serial_number: Annotated[tuple[Uint8, ...], Meta(min_length=_NVME_SERIAL_BYTES, max_length=_NVME_SERIAL_BYTES)]


def nvme_serial_number(text: str) -> tuple[int, ...]:
    """Return the text as the serial number of an `NvmeDisk`, filled up with zero bytes.

    :raises ConfigError: if it takes more than 20 bytes; two long names cut short could become one serial number.
    """
    encoded = text.encode()
    if len(encoded) > _NVME_SERIAL_BYTES:
        raise ConfigError(
            f"NVMe serial number {text!r} takes {len(encoded)} bytes, and there are {_NVME_SERIAL_BYTES}",
            hint="choose a shorter name for the disk",
        )
    return tuple(encoded.ljust(_NVME_SERIAL_BYTES, b"\0"))


class VirtioNic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A virtio-net card. `interface_id` is the caller's own name for it, used in metrics."""

    backend_id: SpecKey
    interface_id: UUID
    pci_path: PciPath


class SerialPortNumber(StrEnum):
    """Which of the PC's serial ports."""

    COM1 = "com1"
    COM2 = "com2"
    COM3 = "com3"
    COM4 = "com4"


class SerialPort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A 16550 UART. The API's serial console is COM1."""

    num: SerialPortNumber


class PciPciBridge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bridge; devices sit behind it by giving its `downstream_bus` as their bus."""

    downstream_bus: Uint8
    pci_path: PciPath


class QemuPvpanic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """QEMU's pvpanic device, through which a guest reports its panics. `enable_isa`: I/O port 0x505 exists."""

    enable_isa: bool


class BootOrderEntry(Struct, frozen=True, kw_only=True):
    """A component, for now a disk, that the firmware should try to boot."""

    id: SpecKey


class BootSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices that the firmware tries to boot, first choice first."""

    order: tuple[BootOrderEntry, ...]


class VirtioSocket(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A virtio-socket device; `guest_cid` is the guest's context ID."""

    guest_cid: Uint64
    pci_path: PciPath

    def __post_init__(self) -> None:
        require_uint64(guest_cid=self.guest_cid)


class SoftNpuPciPort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SoftNPU's PCI device. Needs a server built with `falcon`."""

    pci_path: PciPath


class SoftNpuPort(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A port of the emulated SoftNPU ASIC, over a DLPI backend. Needs a server built with `falcon`."""

    backend_id: SpecKey
    link_name: str


class SoftNpuP9(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A PCI device that shares SoftNPU's files over 9P. Needs a server built with `falcon`."""

    pci_path: PciPath


class P9fs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the host, shared over 9P. Needs a server built with `falcon`.

    :param chunk_size: in bytes; 8192 for plain Helios images, up to 65536 elsewhere.
    :param source: the host's path.
    :param target: the 9P tag by which the guest mounts it.
    """

    chunk_size: Uint32
    pci_path: PciPath
    source: str
    target: str


class MigrationFailureInjector(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that spoils migrations on purpose. Needs a server built with `failure-injection`.

    :param fail_exports: how many times to fail when the source exports its state.
    :param fail_imports: how many times to fail when the target imports it.
    """

    fail_exports: Uint32
    fail_imports: Uint32
