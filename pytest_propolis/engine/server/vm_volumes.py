"""Operations on the volumes of an active VM. Errors are those of the API."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from ...propolis_api import Component, InstanceSpec, VolumeStatus
from ..qemu.devices.hot_plug import plug
from ..qemu.machine_part import PartKind
from ..qemu.monitor import MachineError
from ..volumes.block_backend import BackendError, BackendMissing
from .dropshot_errors import HttpError, backend_not_found, crucible_error, disk_not_found
from .vm_maker import VmMaker
from .vm_objects import VmObjects

__all__ = ["attach_disk", "take_snapshot", "volume_status"]


async def attach_disk(maker: VmMaker, vm: VmObjects, components: Mapping[str, Component]) -> InstanceSpec:
    """Hot-plug a disk on a volume into a VM; return the spec with it.

    :param components: the disk and its backend.
    :raises HttpError: 400 when that is not possible.
    """
    spec, plugged = maker.addition(vm, components)
    nodes = [part for part in plugged if part.kind is PartKind.BLOCK_NODE]
    try:
        await plug(vm.machine, nodes)
        for part in nodes:
            await vm.backends.find(part.key).start(vm.machine)
        await plug(vm.machine, [part for part in plugged if part not in nodes])
    except BaseException as error:
        await vm.backends.discard(vm.machine, components)
        if isinstance(error, MachineError | BackendError):
            raise HttpError(crucible_error(str(error))) from None
        raise
    vm.spec = spec
    return spec


def volume_status(vm: VmObjects, backend_id: str) -> VolumeStatus:
    """Return the status of the volume behind a block backend.

    :raises HttpError: 404 when there is no such backend.
    """
    try:
        return vm.backends.find(backend_id).status
    except BackendMissing:
        raise HttpError(backend_not_found(backend_id)) from None


async def take_snapshot(vm: VmObjects, disk_id: str, snapshot_id: UUID) -> None:
    """Take a snapshot of the volume behind a disk.

    :raises HttpError: 404 when there is no such disk on a volume, 400 when the volume refuses.
    """
    disk = vm.spec.components.get(disk_id)
    try:
        backend = vm.backends.find(getattr(disk and disk.component, "backend_id", disk_id))
        await backend.snapshot(vm.machine, snapshot_id)
    except BackendMissing:
        raise HttpError(disk_not_found(disk_id)) from None
    except (BackendError, MachineError) as error:
        raise HttpError(crucible_error(str(error))) from None
