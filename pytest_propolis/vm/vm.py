"""A virtual machine, as a test drives it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from ..agent_api.boot_source import BootSource
from ..console.following import ExpectedMove
from ..errors import (
    ApiError,
    MigrationError,
    PropolisError,
)
from ..guests.adapter import GuestAdapter
from ..hosts.host import Host
from ..hosts.vm_extensions import attach_disk
from ..propolis_api import (
    FromMigration,
    InstanceEnsureRequest,
    InstanceProperties,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    MigrationTargetInit,
)
from ..propolis_api.client import Endpoint
from .bootable import BootableVm
from .disks.crucible_disk import CrucibleDisk, VolumeDisk, with_volumes
from .instance import STATE_TIMEOUT_S
from .instance_spec.builder import disk_components, free_slot
from .instance_spec.pci_slots import DISPLAY_SLOT, GUEST_PORTS_SLOT
from .migration import TERMINAL, migration_limit_s, replacements, until_migrated
from .networks.forwarding import forward
from .server_handle import ServerHandle
from .timings import Timings
from .warm_start.fork_handle import ForkHandle

if TYPE_CHECKING:
    from ..coordination.group import NodeGroup
    from ..coordination.node import Node

__all__ = ["TestVm"]

HAND_OVER_TIMEOUT_S: Final = 15.0
DESTROY_TIMEOUT_S: Final = 5.0
DEVICE_PATH: Final = (
    "modprobe -qa virtio_blk nvme; until for block in /sys/bus/pci/devices/{0}/virtio*/block/*"
    " /sys/bus/pci/devices/{0}/nvme/*/nvme*n1; do test -d $block && break; done; do sleep 0.02; done;"
    " echo /dev/${{block##*/}}"
)
"""Prints where a guest has a disk, once its kernel has found it."""


class TestVm(BootableVm):
    """A VM and its Propolis server.

    It belongs to the event loop in which it was created. Every wait has a deadline; its error names the awaited event
    and the time, and shows the latest console output.
    """

    __test__: Final = False  # pytest is not to collect it

    def __init__(
        self,
        *,
        name: str,
        server: ServerHandle,
        guest: GuestAdapter,
        spec: InstanceSpec,
        properties: InstanceProperties,
        log_path: Path,
        boot_timeout_s: float,
        boot_source: BootSource,
        forked: ForkHandle | None = None,
        phases: Timings | None = None,
    ) -> None:
        super().__init__(
            name=name,
            server=server,
            guest=guest,
            spec=spec,
            properties=properties,
            log_path=log_path,
            boot_timeout_s=boot_timeout_s,
            forked=forked,
            phases=phases,
        )
        self.host = server.host
        """The host that its server is on."""
        self.server = server.program
        """What serves it, as in `VmConfig`."""
        self.boot_source = boot_source
        self._copies_disks = server.copies_disks
        self.has_display = server.has_display
        """Whether it has a display: ``VmConfig(display=True)``."""
        self.migrated_from: Host | None = None
        """The host that its guest has migrated from last."""

    def __repr__(self) -> str:
        return f"<TestVm {self.name!r} ({self.guest.name})>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def forward(self, port: int) -> int:
        """Forward a port of this machine to a TCP port of the running guest; return the port.

        It listens on 127.0.0.1, for tests that want SSH or HTTP into a guest, until the VM ends or migrates. The VM
        needs a card on the user-mode network (``Nic()``), which gets its address now if it has none.

        :raises ConfigError: when it has no such card, or there is no such port.
        :raises ApiError: when QEMU refuses.
        """
        return await forward(self, port)

    async def stop(self, *, timeout_s: float = STATE_TIMEOUT_S) -> None:
        """Stop the VM without asking its guest, and wait until it is destroyed.

        :raises StateTimeout: when it is not in time.
        """
        self._forked = None
        await self._api().instance_state_put(InstanceStateRequested.STOP)
        await self._until_state(InstanceState.DESTROYED, timeout_s=timeout_s)

    async def migrate_from(
        self, source: TestVm, *, timeout_s: float | None = None, migration_id: uuid.UUID | None = None
    ) -> None:
        """Migrate the running guest of another VM to this one, which must not have been created yet.

        On return the guest is here, with the source's console, its shell and the commands in progress. It does not wait
        until this VM is Running or the source is Destroyed.

        :param timeout_s: by default 90 s per GiB of the guest's memory, and 600 s more if its disks are copied.
        :raises MigrationError: when it fails or takes too long. The source continues to run then.
        """
        self.spec = with_volumes(self.spec, self.volumes)
        default_s = migration_limit_s(self.spec, copies_disks=self._copies_disks)
        limit_s = default_s if timeout_s is None else timeout_s
        init = FromMigration(
            migration_id=migration_id or uuid.uuid4(),
            replace_components=replacements(self.spec),
            src_addr=await self.host.address_for_agent(source.endpoint, on=source.host),
        )
        own_address = await self.host.address_for_agent(self.endpoint, on=self.host)
        source._successor = self.endpoint, Endpoint.at(own_address).base_url
        moved = source._console.moves() if source._console else None
        expected = ExpectedMove(own_address)
        if source._console:
            source._console.expect(expected)
        try:
            async with asyncio.timeout(limit_s):
                request = InstanceEnsureRequest(properties=self.properties, init=MigrationTargetInit(init))
                await self._api().instance_ensure(request)
                if failure := await until_migrated(self._api(), self._migrations):
                    raise MigrationError(failure, vm=self.name, log_path=str(self.log_path))
                expected.settle(is_handed_over=True)
                self._hold_volumes(self.volumes)
                if moved:  # what is typed at the source from now on reaches no guest
                    await asyncio.wait([moved])
                self.spec = (await self.get_spec()).value  # with the disks that it has here
        except TimeoutError:
            raise self._migration_error(source, "is not done", waited_s=limit_s) from None
        except ApiError as error:
            raise self._migration_error(source, f"failed: {error.message}") from error
        finally:
            expected.settle(is_handed_over=False)
        for nic in self.nics:
            assert nic.network is not None
            await nic.network.arrive(self.name, self.host.name)
        self.migrated_from = source.host
        await self._move_console(source)

    async def aclose(self) -> None:
        """End the VM in any state, and close everything opened for it. Idempotent."""
        try:
            await self._end_vm()
        finally:
            await self._resources.aclose()
            self.kernel_failures.is_closed = True
            await self._client.aclose()

    async def release_console(self) -> None:
        """Release the console to the user's shell, if the guest accepts commands. It accepts none afterwards."""
        if self._shell is not None and self._shell.is_up:
            with contextlib.suppress(PropolisError):  # a guest that hangs is worth a look, too
                await self._shell.release_console(timeout_s=HAND_OVER_TIMEOUT_S)

    async def _detach(self) -> None:
        """Close what was opened for the VM, and leave the VM as it is."""
        self._final_state = await self._last_state()
        await self.aclose()

    async def attach(self, disk: CrucibleDisk | VolumeDisk) -> str:
        """Hot-plug a replicated disk into the running VM; return the path of its device in the guest.

        :raises ConfigError: when another VM has the disk, or there is no free slot.
        :raises ApiError: when the server refuses.
        """
        plugged = disk if isinstance(disk, VolumeDisk) else disk.disk()
        plugged.volume.require_reachable(self.host)
        await plugged.volume.require_free()
        plugged = dataclasses.replace(plugged, pci_slot=plugged.pci_slot or self._free_slot())
        attached = plugged.attached()
        components = disk_components(attached)
        self.spec = await attach_disk(self._api().endpoint, components, vm=self.name)
        self._hold_volumes([plugged])
        address = f"0000:00:{attached.pci_slot:02x}.0"
        await self.run(self.guest.await_hotplug_command([address]))
        return await self.run(DEVICE_PATH.format(address))

    def as_node(
        self,
        group: NodeGroup,
        name: str | None = None,
        *,
        address: str = "",
        labels: Iterable[str] = (),
        vital: bool = True,
    ) -> AbstractAsyncContextManager[Node]:
        """Make the guest a node of a group: inside the block its programs may run ``barrier ready 3`` and the like.

        The guest needs no network: its commands come over its second serial port. It may migrate, and it may boot
        again, which ends the waits of its programs. When the VM ends, the node has failed.

        :param name: the node's; by default the VM's.
        :raises CapabilityMissing: when another server than the engine serves the VM.
        """
        from .guest_nodes.guest_node import guest_node

        return guest_node(self, group, name=name, address=address, labels=labels, vital=vital)

    def _migration_error(self, source: TestVm, message: str, **context: Any) -> MigrationError:
        return MigrationError(f"the migration from {source.name!r} {message}", vm=self.name, **context)

    async def _move_console(self, source: TestVm) -> None:
        self.guest_nodes, source.guest_nodes = source.guest_nodes, []
        for node in self.guest_nodes:
            node.vm = self
        self._ports = source._ports
        self._ports.move_to(self.endpoint, vm=self.name)
        if source._console is None:
            await self._open_console()
            return
        self._console, source._console = source._console, None
        self._shell, source._shell = source._shell, None
        self._port, source._port = source._port, None
        self.kernel_failures, source.kernel_failures = source.kernel_failures, self.kernel_failures
        self.kernel_failures.vm, source.kernel_failures.vm = self.name, source.name
        self._console.belongs_to(self.name, follow=self._follow, loss=self.endpoint.loss)
        self.log_path = self._console.log_path
        if self._shell is not None:
            self._shell.belongs_to(self.name)
        await self._resources.enter_async_context(source._resources.pop_all())

    def _free_slot(self) -> int:
        display = (DISPLAY_SLOT,) if self.has_display else ()
        ports = (GUEST_PORTS_SLOT,) if self.has_ports else ()
        return free_slot(self.spec, reserved=(*display, *ports))

    async def _end_vm(self) -> None:
        """PUT Stop, then wait for Destroyed, so that nothing is removed under a running guest."""
        if self._final_state is not None:
            return
        self._final_state = await self._last_state()
        if self._console is not None and self._final_state in TERMINAL:
            reason = f"its state was {self._final_state} before it was stopped"
            self.kernel_failures.ends.record("exit", reason, self._console.transcript)
        with contextlib.suppress(PropolisError):
            await self._client.instance_state_put(InstanceStateRequested.STOP)
            await self._until_state(InstanceState.DESTROYED, timeout_s=DESTROY_TIMEOUT_S)
