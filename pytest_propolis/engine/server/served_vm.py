"""One VM behind a server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec

from ...agent_api.migration_report import MigrationSide
from ...propolis_api import InstanceProperties, InstanceSpec
from ..qemu.monitor import MachineError
from .publisher import StatePublisher
from .vm_objects import VmObjects

if TYPE_CHECKING:
    from ..migration.target import MigrationTarget

__all__ = ["ServedVm"]


class ServedVm(msgspec.Struct, kw_only=True):
    """One VM: made by ensure, dropped by the next ensure.

    :param initialized: whether QEMU came up; an exception there is a `MachineError`, a `MigrationFailed`, or a
        `HttpError` of what the source of a migration sent.
    :param arrival: the migration that it comes from.
    :param objects: None until the source of its migration has sent its spec.
    :param departure: the state of the latest migration away from here.
    :param active: whether it takes requests.
    """

    properties: InstanceProperties
    publisher: StatePublisher
    initialized: asyncio.Future[None]
    arrival: MigrationTarget | None = None
    objects: VmObjects | None = None
    departure: MigrationSide | None = None
    active: bool = False

    @classmethod
    def new(cls, properties: InstanceProperties, publisher: StatePublisher) -> ServedVm:
        """Return a VM without any resources outside this process yet."""
        initialized: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        initialized.add_done_callback(lambda done: done.exception())  # the caller of ensure may have disconnected
        return cls(properties=properties, publisher=publisher, initialized=initialized)

    @property
    def built(self) -> VmObjects:
        """Its objects, once they exist."""
        assert self.objects is not None
        return self.objects

    @property
    def spec(self) -> InstanceSpec | None:
        """Its spec; None until the source of its migration has sent it."""
        return self.objects.spec if self.objects else None

    async def release(self) -> None:
        """Release all its resources, each even if another fails.

        :raises Exception: the last one that was raised.
        """
        if not self.initialized.done():
            self.initialized.set_exception(MachineError("the server was closed before QEMU was up"))
        async with contextlib.AsyncExitStack() as all_of_it:
            if self.objects is not None:
                all_of_it.push_async_callback(self.objects.release)
            if self.arrival is not None:
                self.arrival.failure = self.arrival.failure or _reason(self.initialized)
                all_of_it.push_async_callback(self.arrival.close)


def _reason(initialized: asyncio.Future[None]) -> str | None:
    error = initialized.exception()
    return str(error) if error else None
