"""A configuration becomes an instance spec, with PHD's names and places for the components."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ..errors import ConfigError
from ..propolis_api import (
    BhyveInterface,
    BlobStorageBackend,
    BlobStorageBackendComponent,
    Board,
    BootOrderEntry,
    BootSettings,
    BootSettingsComponent,
    Chipset,
    Component,
    Cpuid,
    FileStorageBackend,
    FileStorageBackendComponent,
    HyperVFeatureFlag,
    HyperVFeatures,
    HyperVInterface,
    I440Fx,
    InstanceMetadata,
    InstanceProperties,
    InstanceSpec,
    MigrationFailureInjector,
    MigrationFailureInjectorComponent,
    NvmeDisk,
    NvmeDiskComponent,
    PciPath,
    SerialPort,
    SerialPortComponent,
    SerialPortNumber,
    VirtioDisk,
    VirtioDiskComponent,
    VirtioNetworkBackend,
    VirtioNetworkBackendComponent,
    VirtioNic,
    VirtioNicComponent,
    nvme_serial_number,
)
from .config import PCI_SLOTS, SLOT_HINT, DiskInterface, Nic

__all__ = [
    "FIRST_DISK_SLOT",
    "FIRST_NIC_SLOT",
    "AttachedDisk",
    "disk_components",
    "free_slot",
    "instance_properties",
    "instance_spec",
    "nic_components",
    "successor_properties",
    "with_failure_injector",
]

FIRST_DISK_SLOT = 4
"""Where PHD puts the boot disk; the slots below belong to the chipset."""

FIRST_NIC_SLOT = 16
"""Where network cards begin, which PHD has none of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk as the server gets it. Its backend's key is its own name and ``-backend``.

    :param path: the file that it is in; None for one in memory.
    :param contents: what is on a disk in memory.
    :param backend: its backend, if it is neither in a file nor in memory.
    :param pci_slot: where it sits; None for the next one.
    """

    name: str
    path: str | None = None
    contents: bytes | None = None
    interface: DiskInterface
    readonly: bool = False
    block_size: int = 512
    pci_slot: int | None = None
    backend: Component | None = None


def instance_spec(
    *,
    cpus: int,
    memory_mib: int,
    disks: Sequence[AttachedDisk],
    boot_order: Sequence[str],
    nics: Sequence[Nic] = (),
    cpuid: Cpuid | None = None,
    hyper_v: Sequence[HyperVFeatureFlag] | None = None,
) -> InstanceSpec:
    """The spec of a VM: a board, four serial ports, disks from slot 4 on, cards from slot 16 on, maybe a boot order."""
    components: dict[str, Component] = {
        number.value: SerialPortComponent(SerialPort(num=number)) for number in SerialPortNumber
    }
    for index, disk in enumerate(disks):
        components |= disk_components(disk, default_slot=FIRST_DISK_SLOT + index)
    for index, nic in enumerate(nics):
        components |= nic_components(nic, default_slot=FIRST_NIC_SLOT + index)
    if boot_order:
        order = tuple(BootOrderEntry(id=name) for name in boot_order)
        components["boot-settings"] = BootSettingsComponent(BootSettings(order=order))
    board = Board(
        chipset=Chipset(type="i440_fx", value=I440Fx(enable_pcie=False)),
        cpuid=cpuid,
        cpus=cpus,
        guest_hv_interface=(
            BhyveInterface() if hyper_v is None else HyperVInterface(HyperVFeatures(features=frozenset(hyper_v)))
        ),
        memory_mb=memory_mib,
    )
    return InstanceSpec(board=board, components=components)


def with_failure_injector(spec: InstanceSpec, *, exports: int | None, imports: int | None) -> InstanceSpec:
    """The same with PHD's device that fails migrations, if either number is given."""
    if exports is None and imports is None:
        return spec
    injector = MigrationFailureInjector(fail_exports=exports or 0, fail_imports=imports or 0)
    components = {**spec.components, "migration-failure": MigrationFailureInjectorComponent(injector)}
    return msgspec.structs.replace(spec, components=components)


def successor_properties(properties: InstanceProperties, name: str) -> InstanceProperties:
    """Who the same instance is at another server: it has another sled, and its own name."""
    sled = uuid.uuid4()
    metadata = msgspec.structs.replace(properties.metadata, sled_id=sled, sled_serial=str(sled))
    return msgspec.structs.replace(properties, name=name, metadata=metadata)


def instance_properties(name: str) -> InstanceProperties:
    """Who the VM is: random ids, so that no two VMs are mistaken for each other."""
    sled = uuid.uuid4()
    return InstanceProperties(
        id=uuid.uuid4(),
        name=name,
        description=f"test VM {name}",
        metadata=InstanceMetadata(
            project_id=uuid.uuid4(),
            silo_id=uuid.uuid4(),
            sled_id=sled,
            sled_model="pytest-propolis",
            sled_revision=1,
            sled_serial=str(sled),
        ),
    )


def _path(slot: int | None, default: int) -> PciPath:
    return PciPath(bus=0, device=default if slot is None else slot, function=0)


def free_slot(spec: InstanceSpec) -> int:
    """The first slot of PCI bus 0 that a disk can have and no device has.

    :raises ConfigError: when all are taken.
    """
    paths = [getattr(wrapper.component, "pci_path", None) for wrapper in spec.components.values()]
    taken = {path.device for path in paths if path is not None and path.bus == 0}
    for slot in range(FIRST_DISK_SLOT, PCI_SLOTS.stop):
        if slot not in taken:
            return slot
    raise ConfigError("there is no free slot on the PCI bus", hint=SLOT_HINT)


def disk_components(disk: AttachedDisk, *, default_slot: int = FIRST_DISK_SLOT) -> dict[str, Component]:
    """A disk and its backend."""
    key, path = f"{disk.name}-backend", _path(disk.pci_slot, default_slot)
    if disk.interface == "nvme":
        serial = nvme_serial_number(disk.name[:20])
        return {
            key: _backend(disk),
            disk.name: NvmeDiskComponent(NvmeDisk(backend_id=key, pci_path=path, serial_number=serial)),
        }
    return {key: _backend(disk), disk.name: VirtioDiskComponent(VirtioDisk(backend_id=key, pci_path=path))}


def _backend(disk: AttachedDisk) -> Component:
    if disk.backend is not None:
        return disk.backend
    if disk.path is not None:
        file = FileStorageBackend(path=disk.path, readonly=disk.readonly, block_size=disk.block_size)
        return FileStorageBackendComponent(file)
    encoded = base64.b64encode(disk.contents or b"").decode("ascii")
    return BlobStorageBackendComponent(BlobStorageBackend(base64=encoded, readonly=disk.readonly))


def nic_components(nic: Nic, *, default_slot: int = FIRST_NIC_SLOT) -> dict[str, Component]:
    """A network card and its backend."""
    key, path = f"{nic.name}-backend", _path(nic.pci_slot, default_slot)
    # Random, so that no two cards have one address.
    card = VirtioNic(backend_id=key, interface_id=uuid.uuid4(), pci_path=path)
    return {
        key: VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name=nic.link)),
        nic.name: VirtioNicComponent(card),
    }
