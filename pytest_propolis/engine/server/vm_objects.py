"""The objects that make up one VM, from the moment that its spec is known."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    FileStorageBackend,
    InstanceSpec,
)
from ...storage.files import mount_point
from ..qemu.devices.blobs import BlobFiles
from ..qemu.devices.disks import backend_nodes
from ..qemu.machine import Machine
from ..qemu.machine_part import MachinePart
from ..qemu.memory import OwnMemory
from ..volumes.block_backend import BlockBackends
from .driver import StateDriver

if TYPE_CHECKING:
    from ..migration.source import MigrationSource

__all__ = ["VmObjects"]


class VmObjects(msgspec.Struct, kw_only=True):
    """The objects of one VM.

    :param memory: the guest's memory; None if its file is the agent's or a template's.
    :param source: migrates the guest away.
    :param plugged: a fork's devices that its template lacks.
    """

    spec: InstanceSpec
    memory: OwnMemory | None
    backends: BlockBackends
    blobs: BlobFiles
    source: MigrationSource
    driver: StateDriver
    machine: Machine
    plugged: list[MachinePart]

    def volume_replaced(self, key: str, vcr_json: str) -> None:
        """Update the spec after a block backend was replaced."""
        backend = self.spec.components[key].component
        if isinstance(backend, CrucibleStorageBackend):
            component = CrucibleStorageBackendComponent(msgspec.structs.replace(backend, request_json=vcr_json))
            self.spec = msgspec.structs.replace(self.spec, components={**self.spec.components, key: component})

    @property
    def disk_error(self) -> str | None:
        """Why QEMU stopped the guest permanently, with the disk and its file system.

        Kept short: it travels in the close frame of a websocket.
        """
        if (error := self.machine.disk_error) is None:
            return None
        key = {node: key for key, node in backend_nodes(self.spec.components).items()}.get(error.node, error.node)
        backend = self.spec.components[key].component if key in self.spec.components else None
        place = mount_point(Path(backend.path)) if isinstance(backend, FileStorageBackend) else "its file system"
        return f"backend {key!r}: {'no space left' if error.is_full else error.reason} in {place}"

    @property
    def failure(self) -> str | None:
        """Why the VM could not continue, if its disks are the reason."""
        return self.driver.failure or self.machine.failure or self.disk_error

    async def release(self) -> None:
        """Release all of them, each even if another fails.

        :raises Exception: the last one that was raised.
        """
        async with contextlib.AsyncExitStack() as all_of_them:
            if self.memory is not None:
                all_of_them.callback(self.memory.close)
            all_of_them.callback(self.blobs.close)
            all_of_them.push_async_callback(self.backends.close)
            all_of_them.push_async_callback(self.machine.close)
            if self.machine.is_started:
                all_of_them.push_async_callback(self.backends.quiesce, self.machine)
