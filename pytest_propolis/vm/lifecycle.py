"""Lifecycle actions: what may happen to a VM without its guest's consent, and a helper that applies them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, final

from ..field_checks import Range, check_fields
from ..propolis_api import InstanceState
from .factory import VmFactory
from .vm import TestVm

__all__ = ["LifecycleAction", "Migrate", "Reset", "StopAndStart", "lifecycle"]


class LifecycleAction(Protocol):
    """An action on a VM. Afterwards its guest accepts commands, possibly in another VM."""

    async def perform(self, factory: VmFactory, vm: TestVm) -> TestVm:
        """Perform the action, and return the VM that the guest is in now."""


@final
@dataclass(frozen=True, slots=True)
class Reset:
    """The server resets the VM, and the guest boots again."""

    async def perform(self, _factory: VmFactory, vm: TestVm) -> TestVm:
        await vm.reset()
        await vm.wait_to_boot()
        return vm


@final
@dataclass(frozen=True, slots=True)
class StopAndStart:
    """The VM stops, and its guest boots again from the same disks in a successor.

    Data that the guest has not written to its disks is lost, as with a power cut: run `sync` first.
    """

    async def perform(self, factory: VmFactory, vm: TestVm) -> TestVm:
        await vm.stop()
        successor = await factory.successor(vm)
        await successor.boot()
        return successor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate:
    """The guest migrates to a successor while it runs.

    :param timeout_s: as in `TestVm.migrate_from`.
    :param copy_disks: as in `VmFactory.successor`.
    """

    timeout_s: Annotated[float, Range(0, exclusive=True)] | None = None
    copy_disks: bool = False

    def __post_init__(self) -> None:
        check_fields(self, subject="Migrate")

    async def perform(self, factory: VmFactory, vm: TestVm) -> TestVm:
        successor = await factory.successor(vm, copy_disks=self.copy_disks)
        await successor.migrate_from(vm, timeout_s=self.timeout_s)
        await successor.wait_for_state(InstanceState.RUNNING)
        await vm.wait_for_state(InstanceState.DESTROYED)
        return successor


async def lifecycle(
    factory: VmFactory, vm: TestVm, actions: Sequence[LifecycleAction], check: Callable[[TestVm], Awaitable[object]]
) -> TestVm:
    """Apply the actions to a VM in order, and check it after each.

    ::

        await lifecycle(vm_factory, vm, [Reset(), StopAndStart(), Migrate()], check)

    :param check: called with the VM that the guest is in; its exceptions fail the test.
    :return: the VM that the guest is in at the end.
    """
    for action in actions:
        vm = await action.perform(factory, vm)
        await check(vm)
    return vm
