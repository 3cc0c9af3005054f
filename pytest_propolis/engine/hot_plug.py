"""Hot-plugging: disks that a fork has and its template has not are added to QEMU before the guest goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..propolis_api import BlobStorageBackend, FileStorageBackend, InstanceSpec, NvmeDisk, PciPath, VirtioDisk
from .disks import DiskPart, disk_parts
from .machine import Machine
from .pci import PciBuses
from .spec_faults import SpecRefused

__all__ = ["plug", "pluggable"]

PLUGGABLE: Final = (FileStorageBackend, BlobStorageBackend, NvmeDisk, VirtioDisk)


def pluggable(spec: InstanceSpec, keys: Collection[str], *, blobs: Mapping[str, str]) -> list[DiskPart]:
    """What to add to the machine of a spec that lacks some of its components.

    :param keys: the components that it lacks.
    :param blobs: for each blob backend, the path of a file with its contents.
    :raises SpecRefused: naming the component that cannot be added, or is at fault.
    """
    components = {key: component.component for key, component in spec.components.items()}
    for key in keys:
        component = components[key]
        if not isinstance(component, PLUGGABLE):
            raise SpecRefused(f"component {key!r}: a fork cannot be given a {type(component).__name__}")
        if isinstance(component, NvmeDisk | VirtioDisk) and not _has_slot(component.pci_path, components.values()):
            raise SpecRefused(f"component {key!r}: a fork can be given disks in free slots of PCI bus 0 only")
    buses = PciBuses(components, pcie=spec.board.chipset.value.enable_pcie)
    parts = disk_parts(components, buses, nodes=MappingProxyType({}), blobs=blobs)
    return [part for part in parts if part.key in keys]


async def plug(machine: Machine, parts: Iterable[DiskPart]) -> None:
    """Add nodes and devices to a machine. Its guest hears of them when it runs.

    :raises MachineError: when QEMU refuses one.
    """
    for part in parts:
        await machine.execute(part.command, **part.properties)


def _has_slot(path: PciPath, components: Iterable[object]) -> bool:
    """Whether this is where a guest looks for what comes: a slot of its own on the root bus."""
    taken = [getattr(component, "pci_path", None) for component in components]
    neighbours = [other for other in taken if other and (other.bus, other.device) == (path.bus, path.device)]
    return path.bus == 0 and path.function == 0 and len(neighbours) == 1
