"""The agent's resource registry: which client owns which resources, and how they are released."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path

from ..agent_api.agent_process import AgentConfig
from ..agent_api.boot_source import DirectKernel
from ..agent_api.messages import CreateVm, Keep, KeptListed, ResourceIds, VmListed, run_of_client
from ..agent_api.retention import Kept
from ..engine.qemu.memory import GuestMemory
from ..engine.templates.template import Template
from ..errors import AgentError, ArtifactMissing, HostBusy
from ..ledger.entry import KEPT_OWNER, Owner
from ..ledger.identity import ProcessIdentity
from ..ledger.ledger import Ledger
from ..ledger.writer import LedgerWriter
from .budget import MemoryBudget
from .client_resources import ClientResources, OwnedVm
from .disks.disk_images import require_absolute
from .disks.disk_registry import DiskRegistry
from .disks.disk_space import DiskSpace
from .hypervisor import Hypervisor, HypervisorFinder
from .servers.server_factory import VmPaths, forked_server, new_server
from .servers.server_process import ServerProcess
from .templates.fork_starter import ForkStarter
from .templates.standby import Standby

__all__ = ["ResourceRegistry"]

logger = logging.getLogger(__name__)


class ResourceRegistry:
    """All resources, by client. Each is in the ledger before it is created, and is removed if its client is gone.

    :param lingers: returns whether the agent stays without clients, and standby forks with it.
    """

    def __init__(
        self,
        config: AgentConfig,
        ledger: Ledger,
        hypervisors: HypervisorFinder,
        *,
        lingers: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._lingers = lingers
        self._ledger = ledger
        self._hypervisors = hypervisors
        self._directory = Path(config.directory)
        self._clients: dict[str, ClientResources] = {}
        self._budget = MemoryBudget()
        self._space = DiskSpace(config, ledger)
        self.disks = DiskRegistry(
            config,
            ledger,
            hypervisors,
            self._space,
            resources_of=self._resources_of,
            all_resources=self._clients.values,
        )
        self.forks = ForkStarter(config, hypervisors, self._space)
        self.standby = Standby(
            self.forks, partial(LedgerWriter, ledger, Owner("standby")), per_kind=config.options.standby
        )

    async def admit(self, client: str, *, pid: int) -> None:
        """Register a client, which may own resources as long as it has a lifeline.

        If the client is being released, admit it afterwards; if it has a lifeline already, add another one.

        :param pid: its process on this host; 0 if it runs on another one.
        """
        if (owned := self._clients.get(client)) and owned.left:
            await owned.released.wait()
        if owned := self._clients.get(client):
            owned.lifelines += 1
            return
        process = None
        with contextlib.suppress(ProcessLookupError):
            process = ProcessIdentity.of(pid) if pid else None
        self._clients[client] = self._new_resources(Owner(client, process))

    def has_client(self, client: str) -> bool:
        """Whether a client has a lifeline, or is being released."""
        return client in self._clients

    def has_client_of_run(self, run: str) -> bool:
        """Whether a client of the run is registered."""
        return any(run_of_client(client) == run for client, owned in self._clients.items() if not owned.kept)

    @property
    def has_lifelines(self) -> bool:
        """Whether there are clients, or some are being released; kept resources have none."""
        return any(not owned.kept for owned in self._clients.values())

    def require_client(self, client: str) -> None:
        """
        :raises AgentError: when it has no lifeline.
        """
        self._resources_of(client)

    def writer_of(self, client: str) -> LedgerWriter:
        """Return a writer that records a client's resources which the registry does not manage itself.

        :raises AgentError: when the client has no lifeline.
        """
        return LedgerWriter(self._ledger, self._resources_of(client).writer.owner)

    @property
    def is_empty(self) -> bool:
        return not self._clients

    async def refresh(self) -> None:
        """Query the servers that are separate processes for the states of their VMs."""
        servers = [vm.server for owned in self._clients.values() for vm in owned.vms.values()]
        await asyncio.gather(*(server.refresh() for server in servers if isinstance(server, ServerProcess)))

    def list_vms(self) -> list[VmListed]:
        return [vm for owned in self._clients.values() for vm in owned.listed_vms()]

    def list_kept(self) -> list[KeptListed]:
        return [owned.listed_kept(key, owned.kept) for key, owned in self._clients.items() if owned.kept]

    @property
    def kept_clients(self) -> frozenset[str]:
        """The agent's own clients for kept resources."""
        return frozenset(key for key, owned in self._clients.items() if owned.kept)

    def find_vm(self, vm_id: str) -> OwnedVm | None:
        for owned in self._clients.values():
            if vm := owned.vms.get(vm_id):
                return vm
        return None

    async def create_vm(self, client: str, request: CreateVm, *, memory: GuestMemory | None = None) -> OwnedVm:
        """Create a Propolis server.

        :param memory: the file for its guest's memory.
        :raises ConfigError: when the client's group has a VM of that name.
        :raises ArtifactMissing: when a file that it would boot from is not there.
        """
        hypervisor = await self._hypervisors.find() if request.program is None else None
        owned = self._resources_of(client)
        await self.disks.require_server_for(owned, request)
        _check_files(request)
        with owned.new_name(request):
            return await self._create_vm(client, owned, request, hypervisor, memory)

    async def _create_vm(
        self,
        client: str,
        owned: ClientResources,
        request: CreateVm,
        hypervisor: Hypervisor | None,
        memory: GuestMemory | None,
    ) -> OwnedVm:
        vm_id = secrets.token_hex(8)
        await self._admit(owned, vm_id, request)
        directory = self._directory / "vms" / vm_id
        writer = LedgerWriter(self._ledger, owned.writer.owner)
        try:
            disk_directory = self._space.directory() / vm_id
            with (
                writer.creating("directory", directory) as entry,
                writer.creating("directory", disk_directory) as disks,
            ):
                disk_directory.mkdir(mode=0o700)
                directory.mkdir(parents=True, mode=0o700)
        except BaseException:
            self._budget.release(vm_id)
            raise
        paths = VmPaths(vm_id, directory, disk_directory, writer)
        server = new_server(
            self._config,
            request,
            paths,
            self._hypervisors,
            hypervisor=hypervisor,
            memory=memory,
            variables=_variables(owned, request.predecessor),
        )
        vm = OwnedVm(
            id=vm_id,
            request=request,
            client=client,
            server=server,
            directory=entry,
            disk_directory=disks,
            writer=writer,
            since=time.time(),
            reservation=vm_id,
        )
        owned.vms[vm_id] = vm
        if isinstance(server, ServerProcess):
            await self._start(owned, vm, server)
        return vm

    async def _start(self, owned: ClientResources, vm: OwnedVm, server: ServerProcess) -> None:
        try:
            await server.start()
            if owned.left:
                raise AgentError("the client left while the VM's server was started")
        except BaseException:
            await asyncio.shield(owned.close(vm))
            raise

    async def fork_vm(self, client: str, request: CreateVm, *, template: Template, template_directory: Path) -> OwnedVm:
        """Create a Propolis server whose first VM resumes from a template.

        :param template_directory: where the template is stored.
        :raises ConfigError: when the client's group has a VM of that name.
        :raises ArtifactMissing: when a file that it would boot from after a reset is not there.
        :raises TemplateError: if QEMU cannot load the template.
        """
        owned = self._resources_of(client)
        _check_files(request)
        with owned.new_name(request):
            return await self._fork_vm(client, owned, request, template, template_directory)

    async def _fork_vm(
        self, client: str, owned: ClientResources, request: CreateVm, template: Template, template_directory: Path
    ) -> OwnedVm:
        reservation = secrets.token_hex(8)
        await self._admit(owned, reservation, request)
        try:
            started = await self.standby.claim(template, template_directory)
            if started is None:
                writer = LedgerWriter(self._ledger, owned.writer.owner)
                started = await self.forks.start(writer, template, template_directory)
            try:
                if owned.left:
                    raise AgentError(f"client {client!r} left while its VM was forked")
                started.writer.transfer_ownership(owned.writer.owner)
            except BaseException:
                await asyncio.shield(self.forks.discard(started))
                raise
        except BaseException:
            self._budget.release(reservation)
            raise
        if request.log_path:
            started.fork.log_to(Path(request.log_path))
        vm = OwnedVm(
            id=started.id,
            request=request,
            client=client,
            server=forked_server(self._config, request, started),
            directory=started.directory,
            disk_directory=started.disk_directory,
            writer=started.writer,
            since=time.time(),
            fork=started.config.fork,
            reservation=reservation,
        )
        owned.vms[vm.id] = vm
        return vm

    async def remove_vm(self, client: str, vm_id: str) -> None:
        """End a VM and its server. Idempotent."""
        owned = self._resources_of(client)
        if vm := owned.vms.get(vm_id):
            await owned.close(vm)

    async def remove(self, client: str, resources: ResourceIds) -> None:
        """Remove VMs and then disks, in the order of `release`. Skip any that are already gone."""
        owned = self._resources_of(client)
        going = [vm for vm_id in resources.vms if (vm := owned.vms.get(vm_id))]
        going += [vm for vm in owned.vms.values() if (vm.request.group, vm.request.name) in resources.named]
        await _all(partial(owned.close, vm) for vm in going)
        for disk_id in resources.disks:
            await self.disks.remove_disk(client, disk_id)
        for volume_id in resources.volumes:
            await self.disks.remove_volume(client, volume_id)

    def keep(self, client: str, request: Keep) -> KeptListed:
        """Transfer VMs and disks from a client to the agent's own client for kept resources; `release` ends that one.

        The disks outlive even the agent, until they expire.
        """
        source = self._resources_of(client)
        kept = Kept(request.reason, time.time() + request.ttl_s)
        key = f"kept-{secrets.token_hex(4)}"
        target = self._new_resources(Owner(KEPT_OWNER, ProcessIdentity.current()), kept=kept)
        try:
            source.transfer(request.resources, target, kept, self._ledger)
        except BaseException:
            source.reclaim(target)
            raise
        for vm in target.vms.values():
            vm.client = key
        for volume in target.volumes.values():
            volume.client = key
        if target.vms or target.disks or target.forks or target.volumes:
            self._clients[key] = target
        return target.listed_kept(key, kept)

    async def released(self, client: str) -> None:
        """Wait until everything that a client owned is released. Return at once for an unknown client."""
        if owned := self._clients.get(client):
            await owned.released.wait()

    async def drop_lifeline(self, client: str) -> None:
        """Release the client's resources if this was its last lifeline."""
        if owned := self._clients.get(client):
            owned.lifelines -= 1
            if owned.lifelines <= 0:
                await self.release(client)

    async def release(self, client: str) -> None:
        """Release everything that a client owns: VMs first, then the disks that they held open."""
        owned = self._clients.get(client)
        if owned is None:
            return
        owned.left = True
        await _all(partial(owned.close, vm) for vm in list(owned.vms.values()))
        for disk_id in list(owned.disks):
            owned.remove_disk(disk_id)
        await _all(partial(owned.remove_fork, fork_id) for fork_id in list(owned.forks))
        await _all(partial(owned.remove_volume, volume_id) for volume_id in list(owned.volumes))
        if not self._lingers() and all(other.kept for other in self._clients.values() if other is not owned):
            await self.standby.rest()  # what was kept needs none
        self._clients.pop(client, None)
        owned.released.set()

    async def release_all(self) -> None:
        await self.standby.close()
        await _all(partial(self.release, client) for client in list(self._clients))

    def close(self) -> None:
        """Remove the directories shared by all clients. Call it once everything is released."""
        self._space.close()

    async def _admit(self, owned: ClientResources, reservation: str, request: CreateVm) -> None:
        """Reserve memory; discard standby forks if that is necessary."""
        if not request.memory_mib:
            return
        for vm in (vm for others in self._clients.values() for vm in others.vms.values()):
            if vm.has_ended:
                self._budget.suspend(vm.reservation)
            else:
                self._budget.resume(vm.reservation)
        try:
            await self._budget.reserve(reservation, request.memory_mib)
        except HostBusy:
            await self.standby.discard_all()
            raise
        if owned.left:
            self._budget.release(reservation)
            raise AgentError("the client left while it waited for memory")

    def _new_resources(self, owner: Owner, *, kept: Kept | None = None) -> ClientResources:
        return ClientResources(writer=LedgerWriter(self._ledger, owner), release_memory=self._budget.release, kept=kept)

    def _resources_of(self, client: str) -> ClientResources:
        owned = self._clients.get(client)
        if owned is None or owned.left:
            raise AgentError(
                f"client {client!r} has no lifeline", hint="open one first; it says when to release what you own"
            )
        return owned


def _variables(owned: ClientResources, predecessor: str | None) -> Path | None:
    """Return the path of the firmware variables of one of the client's VMs."""
    if predecessor is None:
        return None
    vm = owned.vms.get(predecessor)
    return vm.engine.firmware_variables if vm and vm.engine else None


def _check_files(request: CreateVm) -> None:
    if request.log_path:
        require_absolute(request.log_path, what="log")
    if isinstance(request.boot, DirectKernel):
        for file in (request.boot.kernel, request.boot.initrd):
            if file is not None and not require_absolute(file, what="boot file").is_file():
                raise ArtifactMissing(f"{file} does not exist", hint="run `propolis setup`, or correct the path")


async def _all(calls: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all of these concurrently, and to completion even if some fail."""
    for result in await asyncio.gather(*(call() for call in calls), return_exceptions=True):
        if isinstance(result, Exception):
            logger.error("release failed", exc_info=result)
