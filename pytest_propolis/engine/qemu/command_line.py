"""Translate an instance spec into QEMU's command line: pure, so that a test can compare it word for word."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from ...agent_api.boot_source import BootSource, loaded_kernel
from ...propolis_api import (
    Board,
    Component,
    InstanceProperties,
    InstanceSpec,
    P9fs,
    QemuPvpanic,
    SerialPort,
    SerialPortNumber,
    SoftNpuP9,
    SoftNpuPciPort,
    SoftNpuPort,
    VirtioSocket,
)
from ..invalid_spec import InvalidSpec, SpecUnsupported
from .accelerator.probe import AcceleratorName
from .cpu.model import cpu_arguments
from .devices.disks import disk_parts
from .devices.network import network_parts
from .devices.pci import DISPLAY_SLOT, PciBuses
from .guest_ports import port_devices
from .machine_part import part_arguments
from .memory import MEMORY_ID, GuestMemory

__all__ = [
    "HostResources",
    "InvalidSpec",
    "SpecUnsupported",
    "process_arguments",
    "process_environment",
    "qemu_arguments",
    "unwrap",
]

COM_INDEX: Final = {
    SerialPortNumber.COM1: 0,
    SerialPortNumber.COM2: 1,
    SerialPortNumber.COM3: 2,
    SerialPortNumber.COM4: 3,
}
TUNABLES: Final = "GLIBC_TUNABLES"
GUEST_CIDS: Final = range(3, (1 << 32) - 1)
"""Lower numbers mean the hypervisor, the machine itself and the host; the highest one means any."""

MOST_MEMORY_MIB: Final = 1 << 19
"""Half of the address space of an emulated processor, which has 40 address bits."""

RESETS: Final = ("-action", "reboot=shutdown")
"""A guest that resets itself is stopped until `Machine` has reset the whole machine."""

SOFT_NPU: Final = (SoftNpuPciPort, SoftNpuPort, SoftNpuP9, P9fs)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostResources:
    """What a host gives to a machine.

    :param flash: paths of the firmware's ``code`` and ``variables`` images, where the boot source has them.
    :param memory: the file that holds the guest's memory; None for memory of QEMU's own.
    :param nodes: the block nodes of those storage backends that are not QEMU's own, by component.
    :param blobs: for each blob backend, the path of a file with its contents.
    :param cpu_features: the names of the CPU features that the accelerator has; None if that is not known.
    :param display_socket: where the display's VNC server is to listen; None for a VM without a display.
    :param has_vsock: whether the host's kernel has virtio sockets for guests.
    """

    flash: Mapping[str, str] = field(default_factory=dict)
    memory: GuestMemory | None = None
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    blobs: Mapping[str, str] = field(default_factory=dict)
    cpu_features: Collection[str] | None = None
    display_socket: str | None = None
    has_vsock: bool = False


def qemu_arguments(
    *,
    spec: InstanceSpec,
    properties: InstanceProperties,
    boot: BootSource,
    accelerator: AcceleratorName,
    tag: str,
    resources: HostResources,
    generation: UUID | None = None,
    guest_ports: bool = False,
) -> list[str]:
    """Return QEMU's command line without those of `process_arguments`.

    :param tag: an unguessable tag that identifies the process as the run's.
    :param generation: the generation id of a guest that is a copy of another one; by default the instance's id.
    :raises InvalidSpec: naming the component at fault.
    :raises SpecUnsupported: naming the component that is not supported.
    """
    components = {key: unwrap(component) for key, component in spec.components.items()}
    display_socket = resources.display_socket
    buses = _buses(spec.board, components, display=display_socket is not None, guest_ports=guest_ports)
    arguments = [
        *_process(tag, properties),
        *_board(spec.board, resources.flash, resources.memory),
        *cpu_arguments(spec.board, accelerator, resources.cpu_features),
        *_boot(boot),
        *_smbios(spec),
        *buses.bridges(),
        *("-device", f"vmgenid,guid={generation or properties.id}"),
        *_serial_ports(components),
        *part_arguments(disk_parts(components, buses, nodes=resources.nodes, blobs=resources.blobs)),
        *part_arguments(network_parts(components, buses)),
        *_other_devices(components, buses, has_vsock=resources.has_vsock),
        *_display(display_socket),
        *(port_devices(buses.guest_ports_place) if guest_ports else ()),
    ]
    _require_no_nul(arguments)
    return arguments


def _require_no_nul(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise InvalidSpec(f"a text of the spec has a NUL character: {argument!r}")


def _buses(board: Board, components: Mapping[str, Any], *, display: bool, guest_ports: bool) -> PciBuses:
    pcie = board.chipset.value.enable_pcie
    return PciBuses(components, pcie=pcie, display=display, guest_ports=guest_ports)


def _process(tag: str, properties: InstanceProperties) -> Iterator[str]:
    """Yield the options of every QEMU process: a tag of the run, no default devices, paused."""
    yield from ("-name", f"guest={tag}", "-uuid", str(properties.id))
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S")


def process_arguments(fds: Mapping[str, int], *, incoming: bool) -> list[str]:
    """Return the arguments that connect a QEMU process to `Machine`.

    :param fds: the inherited sockets of the monitor and of the serial and guest ports, by name.
    :param incoming: wait for another machine's state.
    """
    return [
        *RESETS,
        *("-chardev", f"socket,id=monitor,fd={fds['monitor']}", "-mon", "chardev=monitor,mode=control"),
        *(arg for name in fds if name != "monitor" for arg in ("-chardev", f"socket,id={name},fd={fds[name]}")),
        *(("-incoming", "defer") if incoming else ()),
    ]


def process_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables to add for a QEMU process.

    glibc allocates large buffers in huge pages then: QEMU has read a guest's kernel with some page faults instead of
    thousands, and starts in three quarters of the processor time.

    :param inherited: the variables that it has anyway. Those that the user has set for glibc stay.
    """
    return {TUNABLES: "glibc.malloc.hugetlb=1"} if TUNABLES not in inherited else {}


def unwrap(component: Component) -> Any:
    return component.component


def _board(board: Board, flash: Mapping[str, str], memory: GuestMemory | None) -> Iterator[str]:
    if board.cpus < 1:
        raise InvalidSpec("board.cpus is 0: a VM needs at least one CPU")
    if not 1 <= board.memory_mb <= MOST_MEMORY_MIB:
        raise InvalidSpec(f"board.memory_mb is {board.memory_mb}: a VM has from 1 to {MOST_MEMORY_MIB} MiB of memory")
    # Only q35 has the PCIe configuration space.
    machine = "q35" if board.chipset.value.enable_pcie else "pc"
    flash_drives = {"code": "pflash0", "variables": "pflash1"}
    arguments = [machine, *(f"{flash_drives[name]}={name}" for name in flash)]
    if memory is not None:
        arguments.append(f"memory-backend={MEMORY_ID}")
        yield from memory.arguments(size_mib=board.memory_mb)
    yield from ("-machine", ",".join(arguments))
    for name, path in flash.items():
        node = {"driver": "file", "filename": path, "node-name": name, "read-only": name == "code"}
        yield from ("-blockdev", json.dumps(node))
    yield from ("-m", f"{board.memory_mb}M")


def _boot(boot: BootSource) -> Iterator[str]:
    if kernel := loaded_kernel(boot):
        yield from ("-kernel", kernel.kernel, "-append", kernel.command_line)
        if kernel.initrd:
            yield from ("-initrd", kernel.initrd)


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


def _serial_ports(components: Mapping[str, Any]) -> Iterator[str]:
    taken: dict[SerialPortNumber, str] = {}
    for key, port in components.items():
        if isinstance(port, SerialPort):
            if (other := taken.setdefault(port.num, key)) != key:
                raise InvalidSpec(f"components {other!r} and {key!r} are both the serial port {port.num.value}")
            index = COM_INDEX[port.num]
            if index > 1:  # what is behind the first two is the machine's
                yield from ("-chardev", f"null,id=com{index + 1}")
            yield from ("-device", f"isa-serial,index={index},chardev=com{index + 1}")


def _other_devices(components: Mapping[str, Any], buses: PciBuses, *, has_vsock: bool) -> Iterator[str]:
    panics: list[str] = []
    for key, component in components.items():
        match component:
            case QemuPvpanic():
                panics.append(key)
                if component.enable_isa:
                    # The guest decides what to do after its panic, as on any machine.
                    yield from ("-device", "pvpanic,ioport=0x505", "-action", "panic=none")
            case VirtioSocket():
                yield from _vsock(key, component, buses, has_vsock=has_vsock)
            case _ if isinstance(component, SOFT_NPU):
                raise SpecUnsupported(f"component {key!r}: {type(component).__name__}, which needs SoftNPU and illumos")
    if len(panics) > 1:
        raise InvalidSpec(f"components {panics[0]!r} and {panics[1]!r} are both the pvpanic device")
    if sum(isinstance(component, VirtioSocket) for component in components.values()) > 1:
        raise InvalidSpec("more than one component is a virtio socket")


def _vsock(key: str, socket: VirtioSocket, buses: PciBuses, *, has_vsock: bool) -> Iterator[str]:
    if socket.guest_cid not in GUEST_CIDS:
        known = f"from {GUEST_CIDS.start} to {GUEST_CIDS.stop - 1}"
        raise InvalidSpec(f"component {key!r}: guest_cid is {socket.guest_cid}, and must be {known}")
    if not has_vsock:
        raise SpecUnsupported(f"component {key!r}: virtio sockets on a host without /dev/vhost-vsock")
    yield from ("-device", f"vhost-vsock-pci,guest-cid={socket.guest_cid},{buses.place(socket.pci_path)}")


def _display(socket: str | None) -> Iterator[str]:
    if socket is not None:
        yield from ("-device", f"VGA,addr={DISPLAY_SLOT:#x}", "-vnc", f"unix:{socket.replace(',', ',,')}")
