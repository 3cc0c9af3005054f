"""The factory: creates VMs for a test, and removes them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack

import msgspec

from ..agent_api.messages import Keep, KeptListed, ResourceIds
from ..errors import ApiError, ConfigError, PropolisError
from ..field_checks import check_keywords
from ..guests.registry import GuestRegistry
from ..hosts.agent_clients.asynchronous import AsyncAgentClient
from ..hosts.host import Host
from ..hosts.placement import HostChoice, choose_host
from ..propolis_api import InstanceSpec
from ..settings import Settings
from ..storage.artifacts import Artifact
from .config import VmConfig, VmConfigFields
from .disks.crucible_disk import VolumeDisk, with_volumes
from .disks.image_fork import ForkDisk
from .disks.layout import (
    placed,
    require_bootable,
    require_enough_memory,
)
from .instance_spec.builder import (
    with_failure_injector,
)
from .networks.factory_networks import FactoryNetworks, networked
from .networks.network import Network
from .provisioning.host_session import HostSession
from .provisioning.servers import require_same_devices, require_served
from .provisioning.vm_builder import VmBuilder
from .vm import TestVm
from .warm_start.template_maker import cold_reason

__all__ = ["VmFactory"]


class FactoryOptions(TypedDict):
    """The options of a `VmFactory`."""

    settings: Settings
    guests: GuestRegistry
    group: str
    log_dir: Path
    progress: Callable[[str], None]
    made: Callable[[TestVm], None]
    artifact: Callable[[str], Artifact | None]
    metric_addr: NotRequired[str | None]


class VmFactory:
    """Creates any number of VMs, on the hosts of a run. Closing it removes them.

    :param hosts: the hosts that its VMs may be on; the first one is the default.
    :param group: the owner of the VMs, usually a test; their names are unique in it.
    :param log_dir: the directory for their logs, which is created with the first VM.
    :param made: called with each new VM, for reports.
    :param artifact: finds an artifact of a catalog by its name.
    :param metric_addr: the IP address and port at which servers of VMs register for metrics; None for no metrics.
    """

    def __init__(
        self,
        *,
        hosts: Sequence[Host],
        settings: Settings,
        guests: GuestRegistry,
        group: str,
        log_dir: Path,
        progress: Callable[[str], None],
        made: Callable[[TestVm], None],
        artifact: Callable[[str], Artifact | None],
        metric_addr: str | None = None,
    ) -> None:
        self._hosts = hosts
        self._settings = settings
        self._guests = guests
        self._group = group
        self._log_dir = log_dir
        self._progress = progress
        self._made = made
        self._builder = VmBuilder(
            guests=guests, group=group, log_dir=log_dir, progress=progress, artifact=artifact, metric_addr=metric_addr
        )
        self._names: set[str] = set()
        self.vms: list[TestVm] = []
        """All VMs that were made, in that order."""
        self._taken: dict[str, contextlib.AsyncExitStack] = {}
        self._sessions: dict[str, HostSession] = {}
        self._open_sessions = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._networks = FactoryNetworks()

    @property
    def agent(self) -> AsyncAgentClient:
        """The agent of the default host."""
        return self._sessions[self._hosts[0].name].agent

    @property
    def sessions(self) -> tuple[HostSession, ...]:
        """Its sessions on the hosts that it has used."""
        return tuple(self._sessions.values())

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls,
        hosts: Sequence[Host],
        *,
        teardown: Callable[[VmFactory], Awaitable[None]] | None = None,
        **options: Unpack[FactoryOptions],
    ) -> AsyncIterator[VmFactory]:
        """Open a factory on hosts.

        :param teardown: called with the factory at the end; `aclose` by default.
        :param options: as for the class itself.
        """
        factory = cls(hosts=hosts, **options)
        async with factory._open_sessions:
            await factory._session(hosts[0])
            try:
                yield factory
            finally:
                try:
                    await (teardown or cls.aclose)(factory)
                except BaseException:
                    for session in factory.sessions:
                        session.host.unfinished.append(session)
                    raise

    async def _session(self, host: Host) -> HostSession:
        """Return its session on a host, which is opened when the host is first used."""
        async with self._opening:
            if host.name not in self._sessions:
                self._sessions[host.name] = await self._open_sessions.enter_async_context(
                    HostSession.on(host, group=self._group, log_dir=self._log_dir, progress=self._progress)
                )
        return self._sessions[host.name]

    @property
    def group(self) -> str:
        """The name of the VMs' owner."""
        return self._group

    async def release_console(self) -> None:
        """Release the VMs' consoles to the user: `TestVm.release_console`."""
        await asyncio.gather(*(vm.release_console() for vm in self.vms))

    async def detach(self) -> list[tuple[Host, ResourceIds]]:
        """Detach from all VMs as they are, and return their resources by host.

        This process owns them until it has them kept or removed, or ends.
        """
        await self.release_console()
        for stack in self._taken.values():
            stack.pop_all()
        self._taken.clear()
        await asyncio.gather(*(vm._detach() for vm in self.vms), *(session.fetch_logs() for session in self.sessions))
        await self._networks.write_captures(self._log_dir)
        return [(session.host, session.resources) for session in self.sessions]

    async def keep(self, *, reason: str, ttl_s: float) -> list[KeptListed]:
        """Keep VMs and disks for inspection: they outlive this process."""
        await self.detach()
        return [
            await session.agent.keep(Keep(resources=session.resources, reason=reason, ttl_s=ttl_s))
            for session in self.sessions
        ]

    async def aclose(self) -> None:
        """Remove all VMs concurrently. Idempotent.

        All are tried even if one fails; then the first failure is raised. Cancelling it cancels all removals.
        """
        results = await asyncio.gather(*(stack.aclose() for stack in self._taken.values()), return_exceptions=True)
        self._taken.clear()
        await self._networks.write_captures(self._log_dir)
        await self._networks.aclose()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def network(self, name: str, *, dhcp: bool | None = None, slaac: bool | None = None) -> Network:
        """Return a network between VMs of this factory, for ``Nic(network=…)``: always the same for one name.

        :param dhcp: let guests request their addresses by DHCP; by default their shells set them.
        :param slaac: advertise an IPv6 prefix (`Network.prefix`), so that guests form addresses by themselves.
        :raises ConfigError: when there cannot be one of that name, or it exists with another `dhcp` or `slaac`.
        """
        return self._networks.get(name, dhcp=dhcp, slaac=slaac)

    async def start(
        self, name: str = "vm", *, host: HostChoice | None = None, **fields: Unpack[VmConfigFields]
    ) -> TestVm:
        """Create a VM and boot it: `create` and `TestVm.boot`.

        :param host: its host, or a condition on hosts; by default the test's host.
        :param fields: of `VmConfig`.
        :raises ConfigError: when a field does not exist, or its value is impossible.
        :raises BootError: when its guest does not come up.
        """
        return await self.start_config(_config(name, fields), host=host)

    async def start_config(self, config: VmConfig, *, host: HostChoice | None = None) -> TestVm:
        """Create the VM that a configuration describes, and boot it, or fork it from a template.

        :raises ApiError: when the server refuses the spec, or cannot set up the VM, which is removed then.
        :raises BootError: when its guest does not come up.
        """
        vm = await self._make(config, host, warm=True, run=True)
        try:
            await vm.launch()
        except ApiError:
            await self._discard(vm)  # its name is free for another attempt
            raise
        await vm.wait_to_boot()
        return vm

    async def create(
        self, name: str = "vm", *, host: HostChoice | None = None, **fields: Unpack[VmConfigFields]
    ) -> TestVm:
        """Create a VM that does not run yet. It boots from cold unless requested otherwise.

        :param fields: of `VmConfig`.
        :raises ConfigError: when a field does not exist, or its value is impossible.
        """
        return await self.create_config(_config(name, fields), host=host)

    async def create_config(self, config: VmConfig, *, host: HostChoice | None = None) -> TestVm:
        """Create the VM that a configuration describes, not running yet. It boots from cold unless ``boot="warm"``.

        :raises ConfigError: when there is a VM of that name, or the guest is not available as requested.
        :raises ArtifactError: when its image is not available.
        """
        return await self._make(config, host, warm=config.boot == "warm")

    async def _make(self, config: VmConfig, choice: HostChoice | None, *, warm: bool, run: bool = False) -> TestVm:
        """Create a VM.

        :param warm: try to make it a fork.
        :param run: that one may run already.
        """
        self._require_new(config.name)
        complete = config.completed(self._settings)
        volumes = [disk for disk in config.disks if isinstance(disk, VolumeDisk)]
        for disk in volumes:
            await disk.volume.require_free()
        forks = [disk for disk in config.disks if isinstance(disk, ForkDisk)]
        for fork_disk in forks:
            await fork_disk.fork.require_free(readonly=fork_disk.readonly)
        guest = self._guests.get(complete.guest)
        require_enough_memory(complete, guest)
        require_bootable(complete.config, guest)
        complete = placed(complete, guest)
        require_served(complete.config, complete.server)
        host = self._choose(choice)
        for disk in volumes:
            disk.volume.require_reachable(host)
        session = await self._session(host)
        images = self._builder.images(session, timeout_s=complete.boot_timeout_s)
        config = await self._networks.plug(session, await images.resolved(complete.config))
        complete = msgspec.structs.replace(complete, config=config)
        async with self._keeping(session, complete.config.name) as taken:
            vm = None
            if warm and cold_reason(complete, guest) is None:
                vm = await self._builder.fork(session, complete, guest, taken, run=run)
            if vm is None:
                vm = await self._builder.create(session, complete, guest, taken)
            vm._hold_volumes(volumes)
            vm._hold_forks(forks)
            vm.nics = networked(complete.config.nics)
            self._remember(vm)
        return vm

    async def successor(
        self,
        vm: TestVm,
        name: str | None = None,
        *,
        host: HostChoice | None = None,
        copy_disks: bool = False,
        server: str | Path | None = None,
        fail_migration_exports: int | None = None,
        fail_migration_imports: int | None = None,
    ) -> TestVm:
        """Create a VM that can replace another one: the same instance with the same disks, at its own server.

        It does not run yet: `TestVm.migrate_from` migrates the guest to it, and `TestVm.boot` boots it from the disks
        after the other VM has stopped. The other VM still owns the disks: closing its factory removes them.

        :param name: the other VM's name with a number, by default.
        :param host: the other VM's host, by default. A migration copies disks to another host; a VM that boots from
            them must be on the same host.
        :param copy_disks: let a migration copy the disks to new ones of this VM, as between hosts that share no
            storage. Read-only disks are shared in any case.
        :param server: what serves it, as in `VmConfig`; the other VM's server by default.
        :param fail_migration_exports: as in `VmConfig`.
        :param fail_migration_imports: as in `VmConfig`.
        :raises CapabilityMissing: when the other VM has devices that the server does not have.
        """
        name = name or self._successor_name(vm.name)
        self._require_new(name)
        server = server or vm.server
        require_same_devices(name, server, display=vm.has_display, guest_ports=vm.has_ports)
        target_host = self._successor_host(vm, host)
        spec = _successor_spec(vm, fail_exports=fail_migration_exports, fail_imports=fail_migration_imports)
        session = await self._session(target_host)
        spec = await self._networks.succeed(vm, name, session, spec)
        plan = await self._builder.succession(session, vm, name, spec, server=server, copy_disks=copy_disks)
        async with self._keeping(session, name) as taken:
            successor = await self._builder.serve(session, plan, taken)
            successor.volumes, successor.nics = list(vm.volumes), vm.nics
            successor._hold_forks(disk for disk in vm.forks if disk.readonly or not plan.copy_disks)
            self._remember(successor)
        return successor

    def _successor_host(self, vm: TestVm, host: HostChoice | None) -> Host:
        chosen = vm.host if host is None else self._choose(host)
        for disk in vm.volumes:
            disk.volume.require_reachable(chosen)
        return chosen

    @contextlib.asynccontextmanager
    async def _keeping(self, session: HostSession, name: str) -> AsyncIterator[contextlib.AsyncExitStack]:
        """Transfer what is acquired in the block to the factory, or release it if the block fails.

        :param name: the name of the VM that is created in the block.
        """
        try:
            async with contextlib.AsyncExitStack() as taken:
                yield taken
                self._taken[name] = taken.pop_all()
        except asyncio.CancelledError:
            # There may be a VM whose id was on its way.
            with contextlib.suppress(PropolisError):
                await session.agent.remove(ResourceIds(named=((self._group, name),)))
            raise

    def _choose(self, choice: HostChoice | None) -> Host:
        return self._hosts[0] if choice is None else choose_host(self._hosts, choice)

    async def _discard(self, vm: TestVm) -> None:
        """Remove a VM that never ran."""
        await self._taken.pop(vm.name).aclose()
        self._names.remove(vm.name)

    def _require_new(self, name: str) -> None:
        if name in self._names:
            raise ConfigError(
                f"there is a VM named {name!r} in this test already", hint="give each VM of a test its own name"
            )

    def _successor_name(self, name: str) -> str:
        stem = re.sub(r"-\d+$", "", name)
        return next(other for n in itertools.count(2) if (other := f"{stem}-{n}") not in self._names)

    def _remember(self, vm: TestVm) -> None:
        self._names.add(vm.name)
        self.vms.append(vm)
        self._made(vm)


def _config(name: str, fields: VmConfigFields) -> VmConfig:
    check_keywords(fields, VmConfig, subject=f"VM {name!r}")
    return VmConfig(name=name, **fields)  # type: ignore[arg-type] # A source of a disk stands for its disk.


def _successor_spec(vm: TestVm, *, fail_exports: int | None, fail_imports: int | None) -> InstanceSpec:
    """Return the spec of a VM for its successor, which fences it off from its volumes."""
    for disk in vm.volumes:
        disk.volume.set_generation(disk.volume.generation + 1)
    return with_failure_injector(with_volumes(vm.spec, vm.volumes), exports=fail_exports, imports=fail_imports)
