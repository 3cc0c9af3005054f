"""The resources of one client of the agent: VMs, and the disks and volumes that they use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.messages import CreateVm, KeptDisk, KeptListed, ResourceIds, VmListed
from ..agent_api.retention import Kept
from ..agent_api.volumes import VolumeListed
from ..engine.server.server import VmServer
from ..engine.templates.restored_machine import RestoredMachine
from ..errors import ConfigError
from ..ledger.entry import Entry
from ..ledger.ledger import Ledger
from ..ledger.writer import LedgerWriter
from ..propolis_api import InstanceState
from .disks.image_forks import OwnedFork
from .disks.volumes import OwnedVolume
from .servers.server_process import ServerProcess

__all__ = ["ClientResources", "OwnedVm"]

ENDS: Final = (InstanceState.DESTROYED, InstanceState.FAILED)


class OwnedVm(msgspec.Struct, kw_only=True):
    """A Propolis server, its owner, and its ledger entries.

    :param disk_directory: the ledger entry of the directory of its disks.
    :param reservation: the name of its memory reservation.
    """

    id: str
    request: CreateVm
    client: str
    server: VmServer | ServerProcess
    directory: Entry
    writer: LedgerWriter
    since: float
    reservation: str
    disk_directory: Entry | None = None
    fork: RestoredMachine | None = None
    closing: asyncio.Task[None] | None = None

    @property
    def engine(self) -> VmServer | None:
        """Its server, if that is the engine in this process."""
        return self.server if isinstance(self.server, VmServer) else None

    @property
    def port(self) -> int | None:
        """The port of its server, if that is a separate program."""
        return self.server.port if isinstance(self.server, ServerProcess) else None

    @property
    def has_ended(self) -> bool:
        """Whether its QEMU has ended, or its guest has migrated away. Its server stays, and can start it again."""
        engine = self.engine
        if engine is None or engine.state_name is None or engine.pid is not None:
            return False
        if engine.state_name in ENDS:
            return True
        departure = engine.migration_report().migration_out
        return departure is not None and departure.handed_over

    @property
    def disks(self) -> tuple[Path, ...]:
        """The disks in its disk directory."""
        return (*(self.fork.disks if self.fork else ()), *self.server.own_disks)

    def listed(self, kept: Kept | None) -> VmListed:
        return VmListed(
            id=self.id,
            name=self.request.name,
            group=self.request.group,
            client=self.client,
            state=self.server.state_name,
            pid=self.server.pid,
            since=self.since,
            kept=kept,
            port=self.port,
        )


@dataclass(slots=True, kw_only=True)
class ClientResources:
    """The resources of one client. Disks outlive VMs, because VMs hold them open.

    :param release_memory: called with the memory reservation of each VM that has ended.
    """

    writer: LedgerWriter
    release_memory: Callable[[str], None]
    vms: dict[str, OwnedVm] = field(default_factory=dict)
    disks: dict[str, Entry] = field(default_factory=dict)
    forks: dict[str, OwnedFork] = field(default_factory=dict)
    lifelines: int = 1
    volumes: dict[str, OwnedVolume] = field(default_factory=dict)
    left: bool = False
    kept: Kept | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _coming: set[tuple[str, str]] = field(default_factory=set)
    """Names and groups of VMs under construction."""

    @contextlib.contextmanager
    def new_name(self, request: CreateVm) -> Iterator[None]:
        """Reserve the name for a VM that the block creates.

        :raises ConfigError: if the group has a VM of that name, or one under construction.
        """
        name = (request.name, request.group)
        if name in self._coming or any((vm.request.name, vm.request.group) == name for vm in self.vms.values()):
            raise ConfigError(
                f"there is a VM named {request.name!r} in {request.group} already",
                hint="give each VM of a test its own name",
            )
        self._coming.add(name)
        try:
            yield
        finally:
            self._coming.discard(name)

    def listed_vms(self) -> tuple[VmListed, ...]:
        return tuple(vm.listed(self.kept) for vm in self.vms.values())

    def listed_volumes(self) -> tuple[VolumeListed, ...]:
        return tuple(volume.listed(self.kept) for volume in self.volumes.values())

    def listed_kept(self, key: str, kept: Kept) -> KeptListed:
        disks = [KeptDisk(id=disk_id, path=entry.what["path"]) for disk_id, entry in self.disks.items()]
        disks += [KeptDisk(id=fork.id, path=str(fork.fork.path)) for fork in self.forks.values()]
        disks += [KeptDisk(id=vm.id, path=str(path)) for vm in self.vms.values() for path in vm.disks]
        return KeptListed(id=key, kept=kept, vms=self.listed_vms(), disks=tuple(disks), volumes=self.listed_volumes())

    async def close(self, vm: OwnedVm) -> None:
        """End a VM. Concurrent calls wait for the same shutdown."""
        if vm.closing is None:
            vm.closing = asyncio.create_task(self._end(vm))
        await asyncio.shield(vm.closing)

    async def closings(self) -> None:
        """Wait for VMs that are shutting down."""
        closings = [asyncio.shield(vm.closing) for vm in self.vms.values() if vm.closing]
        await asyncio.gather(*closings, return_exceptions=True)

    def remove_disk(self, disk_id: str) -> None:
        """Remove a disk that no VM has open. Idempotent."""
        if entry := self.disks.pop(disk_id, None):
            Path(entry.what["path"]).unlink(missing_ok=True)
            self.writer.gone(entry)

    async def remove_fork(self, fork_id: str) -> None:
        """Remove a fork that no VM has open. Idempotent."""
        if fork := self.forks.pop(fork_id, None):
            await fork.remove()

    async def remove_volume(self, volume_id: str) -> None:
        """Remove a volume that no VM uses. Idempotent."""
        if volume := self.volumes.pop(volume_id, None):
            await volume.close()

    async def _end(self, vm: OwnedVm) -> None:
        try:
            await vm.server.close()
            self.release_memory(vm.reservation)
        except BaseException:
            vm.closing = None  # it may be tried again
            raise
        if self.vms.pop(vm.id, None):
            self.writer.gone(vm.directory)
            if vm.disk_directory:
                self.writer.gone(vm.disk_directory)

    def transfer(self, resources: ResourceIds, target: ClientResources, kept: Kept, ledger: Ledger) -> None:
        """Make another client the owner of resources, which are kept from now on."""
        for vm_id in resources.vms:
            if (vm := self.vms.get(vm_id)) and vm.closing is None:
                vm.writer.transfer_ownership(target.writer.owner)
                if vm.disks and vm.disk_directory:
                    vm.disk_directory = ledger.keep(vm.disk_directory, kept.until, reason=kept.reason)
                target.vms[vm_id] = self.vms.pop(vm_id)
        for disk_id in resources.disks:
            if entry := self.disks.get(disk_id):
                ledger.transfer_ownership(entry, target.writer.owner)
                target.disks[disk_id] = ledger.keep(entry, kept.until, reason=kept.reason)
                del self.disks[disk_id]
            if fork := self.forks.get(disk_id):
                fork.writer.transfer_ownership(target.writer.owner)
                fork.entry = ledger.keep(fork.entry, kept.until, reason=kept.reason)
                target.forks[disk_id] = self.forks.pop(disk_id)
        for volume_id in resources.volumes:
            if volume := self.volumes.get(volume_id):
                volume.writer.transfer_ownership(target.writer.owner)
                volume.directory = ledger.keep(volume.directory, kept.until, reason=kept.reason)
                target.volumes[volume_id] = self.volumes.pop(volume_id)

    def reclaim(self, target: ClientResources) -> None:
        """Take back resources that were transferred to another client."""
        self.vms |= target.vms
        self.disks |= target.disks
        self.forks |= target.forks
        self.volumes |= target.volumes
