"""Build an instance spec from a configuration, with PHD's names and PCI paths for the components."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...errors import ConfigError
from ...propolis_api import (
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
    CrucibleStorageBackendComponent,
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
from ..disks.kinds import AttachedDisk
from .device_names import BACKEND_SUFFIX, BOOT_SETTINGS, FAILURE_INJECTOR
from .pci_slots import DISK_CANDIDATES

if TYPE_CHECKING:
    from ..config import Nic

__all__ = [
    "AttachedDisk",
    "disk_components",
    "downstairs_of",
    "free_slot",
    "instance_properties",
    "instance_spec",
    "nic_components",
    "qcow2_files",
    "successor_properties",
    "with_failure_injector",
    "with_links",
]

NVME_SERIAL_BYTES: Final = 20


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
    """Return the spec of a VM: a board, four serial ports, disks, network cards, maybe a boot order.

    :param nics: each with its slot.
    """
    components: dict[str, Component] = {
        number.value: SerialPortComponent(SerialPort(num=number)) for number in SerialPortNumber
    }
    for disk in disks:
        components |= disk_components(disk)
    for nic in nics:
        components |= nic_components(nic)
    if boot_order:
        order = tuple(BootOrderEntry(id=name) for name in boot_order)
        components[BOOT_SETTINGS] = BootSettingsComponent(BootSettings(order=order))
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
    """Return the same with PHD's device that fails migrations, if either number is given."""
    if exports is None and imports is None:
        return spec
    injector = MigrationFailureInjector(fail_exports=exports or 0, fail_imports=imports or 0)
    components = {**spec.components, FAILURE_INJECTOR: MigrationFailureInjectorComponent(injector)}
    return msgspec.structs.replace(spec, components=components)


def with_links(spec: InstanceSpec, links: Mapping[str, str]) -> InstanceSpec:
    """Return the same with other links, by name of the network card."""
    backends = {
        f"{name}{BACKEND_SUFFIX}": VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name=link))
        for name, link in links.items()
    }
    return msgspec.structs.replace(spec, components={**spec.components, **backends}) if backends else spec


def successor_properties(properties: InstanceProperties, name: str) -> InstanceProperties:
    """Return the properties of the same instance at another server: another sled, and its own name."""
    sled = uuid.uuid4()
    metadata = msgspec.structs.replace(properties.metadata, sled_id=sled, sled_serial=str(sled))
    return msgspec.structs.replace(properties, name=name, metadata=metadata)


def instance_properties(name: str) -> InstanceProperties:
    """Return the properties of a new VM: random ids, so that no two VMs are mistaken for each other."""
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


def free_slot(spec: InstanceSpec, *, reserved: Collection[int]) -> int:
    """Return the first slot of PCI bus 0 that a disk can have and no device has.

    :param reserved: the slots of devices that are not in the spec.
    :raises ConfigError: when all are taken.
    """
    paths = [getattr(wrapper.component, "pci_path", None) for wrapper in spec.components.values()]
    taken = {path.device for path in paths if path is not None and path.bus == 0}
    for slot in DISK_CANDIDATES:
        if slot not in taken and slot not in reserved:
            return int(slot)
    raise ConfigError("there is no free slot on the PCI bus", hint="a VM has room for 28 devices")


def disk_components(disk: AttachedDisk) -> dict[str, Component]:
    """Return a disk and its backend."""
    key, path = f"{disk.name}{BACKEND_SUFFIX}", PciPath(bus=0, device=disk.pci_slot, function=0)
    if disk.interface == "nvme":
        serial = nvme_serial_number(_serial_text(disk.name))
        return {
            key: _backend(disk),
            disk.name: NvmeDiskComponent(NvmeDisk(backend_id=key, pci_path=path, serial_number=serial)),
        }
    return {key: _backend(disk), disk.name: VirtioDiskComponent(VirtioDisk(backend_id=key, pci_path=path))}


def _serial_text(name: str) -> str:
    """Return a serial number of a disk's own: its name, or, if that is too long, its beginning and a hash.

    No name has a ``#``, so none is equal to the short form of another.
    """
    if len(name) <= NVME_SERIAL_BYTES:
        return name
    return f"{name[:9]}#{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _backend(disk: AttachedDisk) -> Component:
    if disk.backend is not None:
        return disk.backend
    if disk.path is not None:
        file = FileStorageBackend(path=disk.path, readonly=disk.readonly, block_size=disk.block_size)
        return FileStorageBackendComponent(file)
    encoded = base64.b64encode(disk.contents or b"").decode("ascii")
    return BlobStorageBackendComponent(BlobStorageBackend(base64=encoded, readonly=disk.readonly))


def nic_components(nic: Nic) -> dict[str, Component]:
    """Return a network card, whose slot is known, and its backend."""
    assert nic.pci_slot is not None
    key, path = f"{nic.name}{BACKEND_SUFFIX}", PciPath(bus=0, device=nic.pci_slot, function=0)
    # Random, so that no two cards have one address.
    card = VirtioNic(backend_id=key, interface_id=uuid.uuid4(), pci_path=path)
    return {
        key: VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name=nic.link)),
        nic.name: VirtioNicComponent(card),
    }


def qcow2_files(spec: InstanceSpec) -> Iterator[str]:
    """The paths of disks that are qcow2 files."""
    for component in spec.components.values():
        if isinstance(component, FileStorageBackendComponent) and component.component.path.endswith(".qcow2"):
            yield component.component.path


def downstairs_of(spec: InstanceSpec) -> Iterator[str]:
    """The addresses of the downstairs that the volume construction requests name."""
    for component in spec.components.values():
        if isinstance(component, CrucibleStorageBackendComponent):
            with contextlib.suppress(msgspec.DecodeError):  # the server says what is wrong with it
                yield from _targets(msgspec.json.decode(component.component.request_json))


def _targets(request: Any) -> Iterator[str]:
    match request:
        case {"opts": {"target": [*targets]}}:
            yield from filter(lambda target: isinstance(target, str), targets)
        case {"sub_volumes": [*parts]}:
            for part in parts:
                yield from _targets(part)
