"""Hot-plug disks and network cards that a fork has and its template lacks, before the fork's guest resumes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from ....propolis_api import (
    BlobStorageBackend,
    CrucibleStorageBackend,
    FileStorageBackend,
    InstanceSpec,
    NvmeDisk,
    PciPath,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
)
from ...invalid_spec import InvalidSpec
from ..machine import Machine
from ..machine_part import MachinePart
from .disks import disk_parts
from .network import network_parts
from .pci import PciBuses

__all__ = ["plug", "pluggable"]

BACKENDS: Final = (CrucibleStorageBackend, FileStorageBackend, BlobStorageBackend, VirtioNetworkBackend)
DEVICES: Final = (NvmeDisk, VirtioDisk, VirtioNic)


def pluggable(
    spec: InstanceSpec,
    keys: Collection[str],
    *,
    blobs: Mapping[str, str],
    nodes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[MachinePart]:
    """Return the parts to hot-plug into a machine that lacks some components of its spec.

    :param keys: the components that it lacks.
    :param blobs: for each blob backend, the path of a file with its contents.
    :param nodes: the block nodes of those storage backends that are not QEMU's own, by component.
    :raises InvalidSpec: naming the component that cannot be added, or is at fault.
    """
    components = {key: component.component for key, component in spec.components.items()}
    for key in keys:
        component = components[key]
        if not isinstance(component, (*BACKENDS, *DEVICES)):
            raise InvalidSpec(f"component {key!r}: a fork cannot be given a {type(component).__name__}")
        if isinstance(component, DEVICES) and not _has_slot(component.pci_path, components.values()):
            raise InvalidSpec(f"component {key!r}: a fork can be given devices in free slots of PCI bus 0 only")
    buses = PciBuses(components, pcie=spec.board.chipset.value.enable_pcie)
    disks = disk_parts(components, buses, nodes=nodes, blobs=blobs)
    return [part for part in (*disks, *network_parts(components, buses)) if part.key in keys]


async def plug(machine: Machine, parts: Iterable[MachinePart]) -> None:
    """Add parts to a machine. Its guest is notified when it runs.

    :raises MachineError: when QEMU refuses one.
    """
    for part in parts:
        await machine.execute(part.kind.command, **part.properties)


def _has_slot(path: PciPath, components: Iterable[object]) -> bool:
    """Return whether a guest detects hot-plugged devices there: in a separate slot on the root bus."""
    taken = [getattr(component, "pci_path", None) for component in components]
    neighbours = [other for other in taken if other and (other.bus, other.device) == (path.bus, path.device)]
    return path.bus == 0 and path.function == 0 and len(neighbours) == 1
