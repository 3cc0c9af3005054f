"""One VM behind a server, with all its resources."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...agent_api.migration_report import MigrationSide
from ...propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    FileStorageBackend,
    InstanceProperties,
    InstanceSpec,
)
from ...storage.files import mount_point
from ..qemu.devices.blobs import BlobFiles
from ..qemu.devices.disks import backend_nodes
from ..qemu.machine import Machine
from ..qemu.machine_part import MachinePart
from ..qemu.memory import OwnMemory
from ..qemu.monitor import MachineError
from ..volumes.block_backend import BlockBackends
from .driver import StateDriver
from .publisher import StatePublisher

if TYPE_CHECKING:
    from ..migration.source import MigrationSource
    from ..migration.target import MigrationTarget

__all__ = ["ServedVm"]


@dataclass(slots=True, kw_only=True)
class ServedVm:
    """One VM: made by ensure, dropped by the next ensure.

    `spec` is None until the source of a migration has sent it. `initialized` tells whether QEMU came up; an exception
    there is a `MachineError`, a `MigrationFailed`, or a `HttpError` of what the source sent. `plugged` are a fork's
    devices that its template lacks.
    """

    properties: InstanceProperties
    spec: InstanceSpec | None
    publisher: StatePublisher
    initialized: asyncio.Future[None]
    backends: BlockBackends | None = None
    driver: StateDriver | None = None
    machine: Machine | None = None
    blobs: BlobFiles | None = None
    memory: OwnMemory | None = None
    arrival: MigrationTarget | None = None
    departure: MigrationSide | None = None
    source: MigrationSource | None = None
    plugged: list[MachinePart] = field(default_factory=list)
    active: bool = False

    def volume_replaced(self, key: str, vcr_json: str) -> None:
        """Update the spec after a block backend was replaced."""
        assert self.spec is not None
        backend = self.spec.components[key].component
        if isinstance(backend, CrucibleStorageBackend):
            component = CrucibleStorageBackendComponent(msgspec.structs.replace(backend, request_json=vcr_json))
            self.spec = msgspec.structs.replace(self.spec, components={**self.spec.components, key: component})

    @classmethod
    def new(cls, properties: InstanceProperties, spec: InstanceSpec | None, publisher: StatePublisher) -> ServedVm:
        """Return a VM without any resources outside this process yet."""
        initialized: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        initialized.add_done_callback(lambda done: done.exception())  # the caller of ensure may have disconnected
        return cls(properties=properties, spec=spec, publisher=publisher, initialized=initialized)

    @property
    def disk_error(self) -> str | None:
        """Why QEMU stopped the guest permanently, with the disk and its file system.

        Kept short: it travels in the close frame of a websocket.
        """
        if self.machine is None or self.spec is None or (error := self.machine.disk_error) is None:
            return None
        key = {node: key for key, node in backend_nodes(self.spec.components).items()}.get(error.node, error.node)
        backend = self.spec.components[key].component if key in self.spec.components else None
        place = mount_point(Path(backend.path)) if isinstance(backend, FileStorageBackend) else "its file system"
        return f"backend {key!r}: {'no space left' if error.is_full else error.reason} in {place}"

    def close_memory(self) -> None:
        if self.memory is not None:
            self.memory.close()

    @property
    def failure(self) -> str | None:
        """Why the VM could not continue, if its disks are the reason."""
        if self.driver is None:
            return None
        return self.driver.failure or (self.machine.failure if self.machine else None) or self.disk_error

    async def release(self) -> None:
        """Release all its resources, each even if another fails.

        :raises Exception: the last one that was raised.
        """
        if not self.initialized.done():
            self.initialized.set_exception(MachineError("the server was closed before QEMU was up"))
        async with contextlib.AsyncExitStack() as all_of_it:
            all_of_it.callback(self.close_memory)
            if self.blobs is not None:
                all_of_it.callback(self.blobs.close)
            if self.backends is not None:
                all_of_it.push_async_callback(self.backends.close)
            if self.machine is not None:
                all_of_it.push_async_callback(self.machine.close)
                if self.backends is not None and self.machine.is_started:
                    all_of_it.push_async_callback(self.backends.quiesce, self.machine)
            if self.arrival is not None:
                self.arrival.failure = self.arrival.failure or _reason(self.initialized)
                all_of_it.push_async_callback(self.arrival.close)


def _reason(initialized: asyncio.Future[None]) -> str | None:
    error = initialized.exception()
    return str(error) if error else None
