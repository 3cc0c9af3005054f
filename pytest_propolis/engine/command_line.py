"""An instance spec becomes QEMU's command line: pure, so that a test can compare it word for word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from ..propolis_api import (
    BhyveInterface,
    BlobStorageBackend,
    Board,
    BootSettings,
    Component,
    CrucibleStorageBackend,
    FileStorageBackend,
    InstanceProperties,
    InstanceSpec,
    MigrationFailureInjector,
    NvmeDisk,
    PciPath,
    PciPciBridge,
    QemuPvpanic,
    SerialPort,
    SerialPortNumber,
    VirtioDisk,
)
from .acceleration import acceleration_arguments
from .accelerator import AcceleratorName
from .boot_source import BootSource, DirectKernel
from .guest_memory import MEMORY_ID, GuestMemory

__all__ = ["SpecRefused", "SpecUnsupported", "qemu_arguments"]

RESERVED_SLOTS: Final = {0: "the host bridge", 1: "the ISA bridge"}
COM_INDEX: Final = {
    SerialPortNumber.COM1: 0,
    SerialPortNumber.COM2: 1,
    SerialPortNumber.COM3: 2,
    SerialPortNumber.COM4: 3,
}


class SpecRefused(Exception):
    """Raised when a spec contradicts itself or asks for what no server could give: HTTP 400."""


class SpecUnsupported(Exception):
    """Raised when a spec has a component that this engine does not realise: HTTP 501."""


def qemu_arguments(
    *,
    spec: InstanceSpec,
    properties: InstanceProperties,
    boot: BootSource,
    accelerator: AcceleratorName,
    mark: str,
    flash: Mapping[str, str],
    memory: GuestMemory | None = None,
    nodes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[str]:
    """Everything on QEMU's command line but the monitor and the serial sockets.

    :param mark: an unguessable word that identifies the process as the run's.
    :param flash: paths of the firmware's ``code`` and ``variables`` images, where the boot source has them.
    :param memory: the file that holds the guest's memory; None for memory of QEMU's own.
    :param nodes: the block nodes of those storage backends that are not QEMU's own, by component.
    :raises SpecRefused: naming the component at fault.
    :raises SpecUnsupported: naming the component that is not realised.
    """
    components = {key: unwrap(component) for key, component in spec.components.items()}
    return [
        *("-name", f"guest={mark}", "-uuid", str(properties.id)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S"),
        *_board(spec.board, accelerator, flash, memory),
        *_boot(boot),
        *_smbios(spec),
        *_devices(components, nodes, root_bus="pcie.0" if spec.board.chipset.value.enable_pcie else "pci.0"),
    ]


def unwrap(component: Component) -> Any:
    return component.component


def _board(
    board: Board, accelerator: AcceleratorName, flash: Mapping[str, str], memory: GuestMemory | None
) -> Iterator[str]:
    if board.cpus < 1:
        raise SpecRefused("board.cpus is 0: a VM needs at least one CPU")
    if board.memory_mb < 1:
        raise SpecRefused("board.memory_mb is 0: a VM needs memory")
    # Only q35 has the PCIe configuration space.
    machine = "q35" if board.chipset.value.enable_pcie else "pc"
    flash_drives = {"code": "pflash0", "variables": "pflash1"}
    words = [machine, *(f"{flash_drives[name]}={name}" for name in flash)]
    if memory is not None:
        words.append(f"memory-backend={MEMORY_ID}")
        yield from memory.arguments(size_mib=board.memory_mb)
    yield from ("-machine", ",".join(words))
    for name, path in flash.items():
        node = {"driver": "file", "filename": path, "node-name": name, "read-only": name == "code"}
        yield from ("-blockdev", json.dumps(node))
    yield from acceleration_arguments(accelerator)
    yield from ("-smp", str(board.cpus), "-m", f"{board.memory_mb}M")
    if board.cpuid is not None:
        raise SpecUnsupported("board.cpuid: CPUID templates")
    if not isinstance(board.guest_hv_interface, BhyveInterface):
        raise SpecUnsupported("board.guest_hv_interface: Hyper-V enlightenments")


def _boot(boot: BootSource) -> Iterator[str]:
    if isinstance(boot, DirectKernel):
        yield from ("-kernel", boot.kernel, "-append", boot.command_line)
        if boot.initrd:
            yield from ("-initrd", boot.initrd)


def _smbios(spec: InstanceSpec) -> Iterator[str]:
    if spec.smbios is not None:
        table = spec.smbios
        fields = {
            "manufacturer": table.manufacturer,
            "product": table.product_name,
            "serial": table.serial_number,
            "version": str(table.version),
        }
        # In QEMU's option syntax a comma is escaped by doubling it.
        yield from ("-smbios", ",".join(["type=1", *(f"{k}={v.replace(',', ',,')}" for k, v in fields.items())]))


def _devices(components: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]], *, root_bus: str) -> Iterator[str]:
    _require_own_places(components)
    buses = _buses(components, root_bus)
    order = _boot_order(components)
    backends = {key: f"backend{n}" for n, key in enumerate(components)}
    backends |= {key: node["node-name"] for key, node in nodes.items()}
    for key, component in sorted(components.items(), key=lambda item: not isinstance(item[1], PciPciBridge)):
        match component:
            case PciPciBridge():
                place = _pci_place(key, component.pci_path, buses)
                name, number = buses[component.downstream_bus], component.downstream_bus
                yield from ("-device", f"pci-bridge,id={name},chassis_nr={number},{place}")
            case VirtioDisk() | NvmeDisk():
                node = backends[_backend_of(key, component, components)]
                yield from ("-device", _disk(key, component, node=node, order=order, buses=buses))
            case FileStorageBackend():
                yield from ("-blockdev", json.dumps(_file_node(component, backends[key])))
            case CrucibleStorageBackend():
                yield from ("-blockdev", json.dumps(_crucible_node(key, nodes)))
            case SerialPort():
                yield from _serial(component)
            case QemuPvpanic():
                yield from (("-device", "pvpanic,ioport=0x505") if component.enable_isa else ())
            case BootSettings() | MigrationFailureInjector():
                pass
            case BlobStorageBackend() | _:
                raise SpecUnsupported(f"component {key!r}: {type(component).__name__}")


def _require_own_places(components: Mapping[str, Any]) -> None:
    taken: dict[PciPath, str] = {}
    for key, component in components.items():
        path = getattr(component, "pci_path", None)
        if path is not None and (other := taken.setdefault(path, key)) != key:
            place = f"{path.bus}.{path.device}.{path.function}"
            raise SpecRefused(f"components {other!r} and {key!r} are both at PCI path {place}")


def _buses(components: Mapping[str, Any], root_bus: str) -> dict[int, str]:
    bridges = {c.downstream_bus: f"bus{c.downstream_bus}" for c in components.values() if isinstance(c, PciPciBridge)}
    return {0: root_bus} | bridges


def _pci_place(key: str, path: PciPath, buses: Mapping[int, str]) -> str:
    if path.bus not in buses:
        raise SpecRefused(f"component {key!r}: PCI bus {path.bus} does not exist: add a bridge for it")
    if path.device > 31 or path.function > 7:
        raise SpecRefused(f"component {key!r}: PCI path {path.bus}.{path.device}.{path.function} is out of range")
    if path.bus == 0 and path.device in RESERVED_SLOTS:
        raise SpecRefused(f"component {key!r}: PCI slot {path.device} is taken by {RESERVED_SLOTS[path.device]}")
    return f"bus={buses[path.bus]},addr={path.device:#x}.{path.function:#x}"


def _boot_order(components: Mapping[str, Any]) -> dict[str, int]:
    settings = [component for component in components.values() if isinstance(component, BootSettings)]
    if len(settings) > 1:
        raise SpecRefused("more than one component has boot settings")
    order = [entry.id for entry in settings[0].order] if settings else []
    for key in order:
        if not isinstance(components.get(key), VirtioDisk | NvmeDisk):
            raise SpecRefused(f"boot order names {key!r}, which is not a disk of this spec")
    # Index 0 is QEMU's own, for the kernel of a direct boot.
    return {key: position for position, key in enumerate(order, start=1)}


def _backend_of(key: str, disk: VirtioDisk | NvmeDisk, components: Mapping[str, Any]) -> str:
    backend = disk.backend_id
    if not isinstance(components.get(backend), FileStorageBackend | BlobStorageBackend | CrucibleStorageBackend):
        raise SpecRefused(f"disk {key!r} names backend {backend!r}, which is not a storage backend of this spec")
    return backend


def _disk(
    key: str, disk: VirtioDisk | NvmeDisk, *, node: str, order: Mapping[str, int], buses: Mapping[int, str]
) -> str:
    words = [_pci_place(key, disk.pci_path, buses), f"drive={node}"]
    if key in order:
        words.append(f"bootindex={order[key]}")
    if isinstance(disk, VirtioDisk):
        return ",".join(["virtio-blk-pci", *words])
    serial = bytes(disk.serial_number).rstrip(b"\0").decode("ascii", errors="replace")
    return ",".join(["nvme", f"serial={serial.replace(',', ',,') or key}", *words])


def _file_node(backend: FileStorageBackend, node: str) -> dict[str, Any]:
    # The format follows from the name and never from the content, which belongs to the guest.
    image_format = "qcow2" if backend.path.endswith(".qcow2") else "raw"
    return {
        "driver": image_format,
        "node-name": node,
        "read-only": backend.readonly,
        "discard": "unmap",
        # A disk of a test need not survive the host's power loss; QEMU's own death it does survive.
        "cache": {"no-flush": True},
        "file": {"driver": "file", "filename": backend.path},
    }


def _crucible_node(key: str, nodes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if key not in nodes:
        raise SpecRefused(f"component {key!r}: this server has no backend for Crucible volumes")
    return nodes[key]


def _serial(port: SerialPort) -> Iterator[str]:
    index = COM_INDEX[port.num]
    if index:
        yield from ("-chardev", f"null,id=com{index + 1}")
    yield from ("-device", f"isa-serial,index={index},chardev=com{index + 1}")
