"""A configuration becomes an instance spec, with PHD's names and places for the components."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from ..propolis_api import (
    Board,
    BootOrderEntry,
    BootSettings,
    BootSettingsComponent,
    Chipset,
    Component,
    FileStorageBackend,
    FileStorageBackendComponent,
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
    nvme_serial_number,
)
from .config import DiskInterface

__all__ = ["AttachedDisk", "instance_properties", "instance_spec", "successor_properties", "with_failure_injector"]

FIRST_DISK_SLOT = 4
"""Where PHD puts the boot disk; the slots below belong to the chipset."""

BLOCK_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk as the server gets it. Its backend's key is its own name and ``-backend``."""

    name: str
    path: str
    interface: DiskInterface


def instance_spec(
    *, cpus: int, memory_mib: int, disks: Sequence[AttachedDisk], boot_order: Sequence[str]
) -> InstanceSpec:
    """The spec of a VM: a board, four serial ports, disks from slot 4 on, a boot order if there is one."""
    components: dict[str, Component] = {
        number.value: SerialPortComponent(SerialPort(num=number)) for number in SerialPortNumber
    }
    for index, disk in enumerate(disks):
        components |= dict(_disk(disk, PciPath(bus=0, device=FIRST_DISK_SLOT + index, function=0)))
    if boot_order:
        order = tuple(BootOrderEntry(id=name) for name in boot_order)
        components["boot-settings"] = BootSettingsComponent(BootSettings(order=order))
    board = Board(chipset=Chipset(type="i440_fx", value=I440Fx(enable_pcie=False)), cpus=cpus, memory_mb=memory_mib)
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


def _disk(disk: AttachedDisk, path: PciPath) -> Iterator[tuple[str, Component]]:
    backend = f"{disk.name}-backend"
    file = FileStorageBackend(path=disk.path, readonly=False, block_size=BLOCK_SIZE)
    yield backend, FileStorageBackendComponent(file)
    if disk.interface == "nvme":
        serial = nvme_serial_number(disk.name[:20])
        yield disk.name, NvmeDiskComponent(NvmeDisk(backend_id=backend, pci_path=path, serial_number=serial))
    else:
        yield disk.name, VirtioDiskComponent(VirtioDisk(backend_id=backend, pci_path=path))
