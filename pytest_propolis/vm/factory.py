"""The factory: makes VMs for a test, and takes them away."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..agent_api.boot_source import BootSource
from ..agent_api.messages import CreateDisk, CreateVm, Keep, KeptListed, ResourceIds
from ..console.log import make_log_directory
from ..errors import ConfigError, PropolisError
from ..guests.adapter import GuestAdapter
from ..guests.registry import GuestRegistry
from ..hosts.agent_client import AsyncAgentClient
from ..hosts.local import LocalHost
from ..propolis_api import Component, InstanceProperties, InstanceSpec
from ..propolis_api.client import PropolisClient
from ..settings import Settings
from .admission import retry_while_busy
from .config import CompleteVmConfig, VmConfig
from .crucible_disk import VolumeDisk, with_volumes
from .disk_layout import boot_order_of, boot_source_of, data_disk, disks_of, require_enough_memory, split_disks
from .guest_images import ReadyImage, ready_image
from .spec import (
    FIRST_NIC_SLOT,
    AttachedDisk,
    disk_components,
    instance_properties,
    instance_spec,
    nic_components,
    successor_properties,
    with_failure_injector,
)
from .timings import Timings
from .vm import TestVm
from .warm_start.template_maker import cold_reason
from .warm_start.warm_starter import WarmStarter

__all__ = ["VmFactory"]


class VmFactory:
    """Makes any number of VMs. What it made is gone when it is closed.

    :param group: what the VMs belong to, usually a test; their names are unique in it.
    :param log_dir: the directory for their logs; it is made with the first VM.
    :param made: receives each VM as soon as there is one, for reports.
    :param templates: what is known of templates on the host; it is added to.
    """

    def __init__(
        self,
        *,
        agent: AsyncAgentClient,
        settings: Settings,
        guests: GuestRegistry,
        group: str,
        log_dir: Path,
        progress: Callable[[str], None],
        made: Callable[[TestVm], None],
        templates: dict[object, str] | None = None,
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._guests = guests
        self._group = group
        self._log_dir = log_dir
        self._progress = progress
        self._made = made
        self._names: set[str] = set()
        self._vm_ids: list[str] = []
        self._disk_ids: list[str] = []
        self.vms: list[TestVm] = []
        """All VMs that were made, in that order."""
        self._taken: list[contextlib.AsyncExitStack] = []
        self._forking = WarmStarter(
            agent, group=group, log_dir=log_dir, known={} if templates is None else templates, progress=progress
        )

    @property
    def agent(self) -> AsyncAgentClient:
        """The agent of the host that the VMs are on."""
        return self._agent

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls, host: LocalHost, *, ending: Callable[[VmFactory], Awaitable[None]] | None = None, **options: Any
    ) -> AsyncIterator[VmFactory]:
        """A factory on a host, with everything that it makes.

        What is left of an earlier one, whose end was cancelled half-way, is removed first.

        :param ending: what is done with the factory in the end; `aclose` by default.
        """
        agent = await host.client()
        try:
            await _clear_away(host, agent)
            factory = cls(agent=agent, templates=host.templates, **options)
            try:
                yield factory
            finally:
                try:
                    await (ending or cls.aclose)(factory)
                except BaseException:
                    host.unfinished.append(factory)
                    raise
        finally:
            await agent.aclose()

    @property
    def group(self) -> str:
        """What the VMs belong to."""
        return self._group

    @property
    def belongings(self) -> ResourceIds:
        """The VMs and disks that were made; they may be gone."""
        return ResourceIds(vms=tuple(self._vm_ids), disks=tuple(self._disk_ids))

    async def hand_over(self) -> None:
        """Leave the VMs' consoles to a person: `TestVm.hand_over`."""
        await asyncio.gather(*(vm.hand_over() for vm in self.vms))

    async def set_aside(self) -> ResourceIds:
        """Let go of all VMs as they are. They stay this process's, until it has them kept or removed, or ends."""
        await self.hand_over()
        for stack in self._taken:
            stack.pop_all()
        self._taken.clear()
        await asyncio.gather(*(vm.let_go() for vm in self.vms))
        return self.belongings

    async def keep(self, *, reason: str, ttl_s: float) -> KeptListed:
        """Leave VMs and disks to a person: they outlive this process."""
        return await self._agent.keep(Keep(belongings=await self.set_aside(), reason=reason, ttl_s=ttl_s))

    async def aclose(self) -> None:
        """Take all VMs away, all at once. Closing twice is fine.

        All are tried even if one fails; then the first failure is raised. If this is cancelled, so is all of it.
        """
        results = await asyncio.gather(*(stack.aclose() for stack in self._taken), return_exceptions=True)
        self._taken.clear()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def start(self, name: str = "vm", **changes: Any) -> TestVm:
        """Make a VM and boot it: `create` and `TestVm.boot`.

        :param changes: fields of `VmConfig`.
        """
        return await self.start_config(VmConfig(name=name, **changes))

    async def start_config(self, config: VmConfig) -> TestVm:
        """Make the VM that a configuration describes, and boot it, or fork it from a guest that was booted before.

        :raises BootError: when its guest does not come up.
        """
        vm = await self._make(config, warm=True, run=True)
        await vm.boot()
        return vm

    async def create(self, name: str = "vm", **changes: Any) -> TestVm:
        """Make a VM that does not run yet. It boots from cold, unless asked otherwise."""
        return await self.create_config(VmConfig(name=name, **changes))

    async def create_config(self, config: VmConfig) -> TestVm:
        """Make the VM that a configuration describes, not running yet. It boots from cold, unless ``boot="warm"``.

        :raises ConfigError: when there is a VM of that name, or the guest cannot be had as asked for.
        :raises ArtifactError: when its image cannot be had.
        """
        return await self._make(config, warm=config.boot == "warm")

    async def _make(self, config: VmConfig, *, warm: bool, run: bool = False) -> TestVm:
        """A VM.

        :param warm: try to make it a fork.
        :param run: that one may run already.
        """
        self._require_new(config.name)
        complete = config.completed(self._settings)
        volumes = [disk for disk in config.further_disks if isinstance(disk, VolumeDisk)]
        for disk in volumes:
            await disk.volume.require_free()
        guest = self._guests.get(complete.guest)
        require_enough_memory(complete, guest)
        async with self._keeping(config.name) as taken:
            vm = None
            if warm and cold_reason(complete, guest) is None:
                vm = await self._fork(complete, guest, taken, run=run)
            if vm is None:
                vm = await self._create(complete, guest, await self._image(complete, guest), taken)
            vm.hold_volumes(volumes)
            self._remember(vm)
        return vm

    async def successor(
        self,
        vm: TestVm,
        name: str | None = None,
        *,
        copy_disks: bool = False,
        fail_migration_exports: int | None = None,
        fail_migration_imports: int | None = None,
    ) -> TestVm:
        """Make a VM that can take another one's place: the same instance with the same disks, at a server of its own.

        It does not run yet: `TestVm.migrate_from` takes the guest over, and `TestVm.boot` boots it from its disks, when
        the other VM has stopped. The disks stay the other VM's: they are gone when that one's factory is closed.

        :param name: by default the other one's, with a number.
        :param copy_disks: have a migration copy the disks to new ones of this VM, as between hosts that share no
            storage. Disks that the guest can only read are shared all the same.
        :param fail_migration_exports: as in `VmConfig`.
        :param fail_migration_imports: as in `VmConfig`.
        """
        name = name or self._successor_name(vm.name)
        self._require_new(name)
        for disk in vm.volumes:
            disk.volume.set_generation(disk.volume.generation + 1)  # it fences the other VM off
        spec = with_volumes(vm.spec, vm.volumes)
        spec = with_failure_injector(spec, exports=fail_migration_exports, imports=fail_migration_imports)
        async with self._keeping(name) as taken:
            heir = await self._serve(
                name,
                guest=vm.guest,
                spec=spec,
                properties=successor_properties(vm.properties, name),
                boot_source=vm.boot_source,
                boot_timeout_s=vm.boot_timeout_s,
                taken=taken,
                copy_disks=copy_disks,
            )
            heir.volumes = list(vm.volumes)
            self._remember(heir)
        return heir

    @contextlib.asynccontextmanager
    async def _keeping(self, name: str) -> AsyncIterator[contextlib.AsyncExitStack]:
        """What is taken in the block is the factory's after it, and gone if the block fails.

        :param name: of the VM that is made in the block.
        """
        try:
            async with contextlib.AsyncExitStack() as taken:
                yield taken
                self._taken.append(taken.pop_all())
        except asyncio.CancelledError:
            # There may be a VM whose id was on its way.
            with contextlib.suppress(PropolisError):
                await self._agent.remove(ResourceIds(named=((self._group, name),)))
            raise

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

    async def _image(self, complete: CompleteVmConfig, guest: GuestAdapter) -> ReadyImage:
        limit_s = complete.boot_timeout_s
        return await ready_image(self._agent, guest.image, timeout_s=limit_s, progress=self._progress)

    async def _fork(
        self, complete: CompleteVmConfig, guest: GuestAdapter, taken: contextlib.AsyncExitStack, *, run: bool
    ) -> TestVm | None:
        """A fork of the kind's template, if it can be had."""
        make_log_directory(self._log_dir)
        name = complete.config.name
        disks = split_disks(complete.config, guest)
        # Cards are never a template's: forks would have one address.
        kind = dataclasses.replace(complete, config=dataclasses.replace(complete.config, disks=disks.kept, nics=()))
        async with contextlib.AsyncExitStack() as made:
            added: dict[str, Component] = {}
            for disk in disks.plugged:
                added |= disk_components(await self._attached(*data_disk(disk), made))
            for number, nic in enumerate(complete.config.nics):
                added |= nic_components(nic, default_slot=FIRST_NIC_SLOT + number)
            forked = await self._forking.fork(kind, guest, added=added, log_path=self._qemu_log(name), run=run)
            if forked is None:
                return None
            await taken.enter_async_context(made.pop_all())
        self._own(forked.vm.id, taken)
        vm = TestVm(
            name=name,
            client=PropolisClient(self._agent.endpoint(forked.vm.path), vm=name),
            guest=guest,
            spec=forked.vm.spec,
            properties=forked.properties,
            log_path=self._serial_log(name),
            boot_timeout_s=complete.boot_timeout_s,
            boot_source=forked.vm.boot,
            migrations=partial(self._agent.migrations, forked.vm.path),
            forked=forked,
            phases=forked.phases,
            vm_id=forked.vm.id,
        )
        return await taken.enter_async_context(vm)

    async def _create(
        self, complete: CompleteVmConfig, guest: GuestAdapter, image: ReadyImage, taken: contextlib.AsyncExitStack
    ) -> TestVm:
        config = complete.config
        spec = instance_spec(
            cpus=complete.cpus,
            memory_mib=complete.memory_mib,
            disks=[await self._attached(disk, request, taken) for disk, request in disks_of(config, image)],
            boot_order=boot_order_of(config, image),
            nics=config.nics,
            cpuid=config.cpuid,
            hyper_v=config.hyper_v,
        )
        spec = with_failure_injector(spec, exports=config.fail_migration_exports, imports=config.fail_migration_imports)
        return await self._serve(
            config.name,
            guest=guest,
            spec=spec,
            properties=instance_properties(config.name),
            boot_source=boot_source_of(config, guest, image),
            boot_timeout_s=complete.boot_timeout_s,
            taken=taken,
            display=config.display,
        )

    async def _serve(
        self,
        name: str,
        *,
        guest: GuestAdapter,
        spec: InstanceSpec,
        properties: InstanceProperties,
        boot_source: BootSource,
        boot_timeout_s: float,
        taken: contextlib.AsyncExitStack,
        display: bool = False,
        copy_disks: bool = False,
    ) -> TestVm:
        """A server for a VM, and the VM, not created there yet."""
        make_log_directory(self._log_dir)
        wanted = CreateVm(
            name=name,
            group=self._group,
            boot=boot_source,
            log_path=str(self._qemu_log(name)),
            memory_mib=spec.board.memory_mb,
            display=display,
            copy_disks=copy_disks,
        )
        phases = Timings()
        created = await retry_while_busy(name, partial(self._agent.create_vm, wanted), phases, progress=self._progress)
        self._own(created.id, taken)
        vm = TestVm(
            name=name,
            client=PropolisClient(self._agent.endpoint(created.path), vm=name),
            guest=guest,
            spec=spec,
            properties=properties,
            log_path=self._serial_log(name),
            boot_timeout_s=boot_timeout_s,
            boot_source=boot_source,
            migrations=partial(self._agent.migrations, created.path),
            copies_disks=copy_disks,
            phases=phases,
            vm_id=created.id,
        )
        return await taken.enter_async_context(vm)

    def _own(self, vm_id: str, taken: contextlib.AsyncExitStack) -> None:
        self._vm_ids.append(vm_id)
        taken.push_async_callback(self._agent.remove_vm, vm_id)

    def _qemu_log(self, name: str) -> Path:
        return self._log_dir / f"{name}.qemu.log"

    def _serial_log(self, name: str) -> Path:
        return self._log_dir / f"{name}.serial.log"

    async def _attached(
        self, disk: AttachedDisk, request: CreateDisk | None, taken: contextlib.AsyncExitStack
    ) -> AttachedDisk:
        """A disk that is there; one in memory is without anybody making it."""
        if request is None:
            return disk
        created = await self._agent.create_disk(request)
        self._disk_ids.append(created.id)
        taken.push_async_callback(self._agent.remove_disk, created.id)
        return dataclasses.replace(disk, path=created.path)


async def _clear_away(host: LocalHost, agent: AsyncAgentClient) -> None:
    while host.unfinished:
        await agent.remove(host.unfinished[-1].belongings)
        host.unfinished.pop()
