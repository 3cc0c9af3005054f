"""The creation of one VM on a host: as a fork of a template, or at a new server."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec

from ...agent_api.boot_source import BootSource, DirectKernel
from ...agent_api.disks import CreateDisk
from ...agent_api.messages import CreateVm
from ...console.log import make_log_directory
from ...guests.adapter import GuestAdapter
from ...guests.registry import GuestRegistry
from ...hosts.host import log_path_on
from ...propolis_api import Component, InstanceProperties, InstanceSpec
from ...propolis_api.client import PropolisClient
from ...propolis_api.connection.endpoint import Endpoint
from ...storage.artifacts import Artifact
from ..config import CompleteVmConfig, Nic
from ..disks.image_disk import image_format_of
from ..disks.images import ImageFinder
from ..disks.kinds import AttachedDisk, Disk
from ..disks.layout import boot_order_of, boot_source_of, disks_of, firmware_of, split_disks
from ..instance_spec.builder import (
    disk_components,
    downstairs_of,
    instance_properties,
    instance_spec,
    nic_components,
    qcow2_files,
    successor_properties,
    with_failure_injector,
)
from ..server_handle import ServerHandle
from ..timings import Timings
from ..vm import TestVm
from ..warm_start.fork_handle import ForkHandle
from .guest_images import ReadyImage, ready_image
from .host_session import HostSession
from .servers import disk_reader, open_server, qemu_log

__all__ = ["VmBuilder", "VmPlan"]


class VmPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A VM for which a new server will be created.

    :param copy_disks: whether a migration to it copies the disks.
    :param predecessor: the id, on the same host, of the VM that it succeeds.
    :param server: what serves it, as in `VmConfig`.
    """

    name: str
    guest: GuestAdapter
    spec: InstanceSpec
    properties: InstanceProperties
    boot_source: BootSource
    boot_timeout_s: float
    server: str | Path
    display: bool = False
    guest_ports: bool = False
    copy_disks: bool = False
    predecessor: str | None = None


class VmBuilder:
    """Builds VMs for a factory. What it takes for one is released by the exit stack that the caller gives it.

    :param group: what the VMs belong to, usually a test.
    :param log_dir: the directory for their logs; it is made with the first VM.
    :param artifact: finds an artifact of a catalog by its name.
    :param metric_addr: where servers of VMs register for metrics; None for no metrics.
    """

    def __init__(
        self,
        *,
        guests: GuestRegistry,
        group: str,
        log_dir: Path,
        progress: Callable[[str], None],
        artifact: Callable[[str], Artifact | None],
        metric_addr: str | None,
    ) -> None:
        self._guests = guests
        self._group = group
        self._log_dir = log_dir
        self._progress = progress
        self._artifact = artifact
        self._metric_addr = metric_addr
        self._registries: dict[str, str] = {}

    def images(self, session: HostSession, *, timeout_s: float) -> ImageFinder:
        """Return a finder of disk images and boot ROMs for VMs on a host."""
        return ImageFinder(
            session.host,
            session.agent,
            guests=self._guests,
            artifact=self._artifact,
            boot_timeout_s=timeout_s,
            progress=self._progress,
        )

    async def fork(
        self,
        session: HostSession,
        complete: CompleteVmConfig,
        guest: GuestAdapter,
        taken: contextlib.AsyncExitStack,
        *,
        run: bool,
    ) -> TestVm | None:
        """Fork a VM from the template of its kind; return None if there cannot be one.

        :param run: whether it may run on return.
        """
        make_log_directory(self._log_dir)
        name = complete.config.name
        disks = split_disks(complete.config)
        # Cards are never a template's: forks would have one address.
        kind = msgspec.structs.replace(complete, config=dataclasses.replace(complete.config, disks=disks.kept, nics=()))
        async with contextlib.AsyncExitStack() as made:
            log = qemu_log(self._log_dir, name)
            forked = await session.warm_starter.fork(
                kind,
                guest,
                added=await self._plugged(session, disks.plugged, complete.config.nics, made),
                log_path=log_path_on(session.host, log),
                run=run,
                metric_addr=await self._registry_on(session),
            )
            if forked is None:
                return None
            await taken.enter_async_context(made.pop_all())
        session.own_vm(forked.vm.id, taken, log_path=log)
        return await taken.enter_async_context(self._forked_vm(session, complete, guest, forked))

    def _forked_vm(
        self, session: HostSession, complete: CompleteVmConfig, guest: GuestAdapter, forked: ForkHandle
    ) -> TestVm:
        name = complete.config.name
        client = PropolisClient(session.agent.endpoint(forked.vm.path), vm=name, log_path=qemu_log(self._log_dir, name))
        return TestVm(
            name=name,
            server=ServerHandle(
                host=session.host,
                client=client,
                vm_id=forked.vm.id,
                migrations=partial(session.agent.migrations, forked.vm.path),
                has_ports=complete.config.has_ports,
            ),
            guest=guest,
            spec=forked.vm.spec,
            properties=forked.properties,
            log_path=self._serial_log(name),
            boot_timeout_s=complete.boot_timeout_s,
            boot_source=forked.vm.boot,
            forked=forked,
            phases=forked.phases,
        )

    async def _plugged(
        self, session: HostSession, disks: Iterable[Disk], nics: Iterable[Nic], made: contextlib.AsyncExitStack
    ) -> dict[str, Component]:
        """Return the components that a fork has beside those of its template; make their disks."""
        added: dict[str, Component] = {}
        for disk in disks:
            added |= disk_components(await self._attached(session, disk.attached(), disk.request(), made))
        for nic in nics:
            added |= nic_components(nic)
        return added

    async def create(
        self,
        session: HostSession,
        complete: CompleteVmConfig,
        guest: GuestAdapter,
        taken: contextlib.AsyncExitStack,
    ) -> TestVm:
        """Build a VM that boots; it is not created at its server yet."""
        config = complete.config
        images = self.images(session, timeout_s=complete.boot_timeout_s)
        image = await self._image(session, guest, timeout_s=complete.boot_timeout_s)
        if config.boot_disk is not None:
            path = await images.path(config.boot_disk)
            image = msgspec.structs.replace(image, disk=Path(path), disk_format=image_format_of(path))
        reader = await disk_reader(complete.server, images)
        spec = instance_spec(
            cpus=complete.cpus,
            memory_mib=complete.memory_mib,
            disks=[
                await self._attached(session, disk, request, taken, reader=reader)
                for disk, request in disks_of(config, image)
            ],
            boot_order=boot_order_of(config, image),
            nics=config.nics,
            cpuid=config.cpuid,
            hyper_v=config.hyper_v,
        )
        spec = with_failure_injector(spec, exports=config.fail_migration_exports, imports=config.fail_migration_imports)
        boot_rom = None
        if complete.boot_rom is not None and firmware_of(config, guest) == "uefi":
            boot_rom = await images.boot_rom(complete.boot_rom)
        plan = VmPlan(
            name=config.name,
            guest=guest,
            spec=spec,
            properties=instance_properties(config.name),
            boot_source=boot_source_of(config, guest, image, boot_rom=boot_rom),
            boot_timeout_s=complete.boot_timeout_s,
            server=complete.server,
            display=config.display,
            guest_ports=config.has_ports,
        )
        return await self.serve(session, plan, taken)

    async def serve(self, session: HostSession, plan: VmPlan, taken: contextlib.AsyncExitStack) -> TestVm:
        """Open a server for a VM; it is not created there yet."""
        make_log_directory(self._log_dir)
        phases = Timings()
        served = await open_server(
            plan.server,
            CreateVm(
                name=plan.name,
                group=self._group,
                boot=plan.boot_source,
                log_path="",
                memory_mib=plan.spec.board.memory_mb,
                display=plan.display,
                guest_ports=plan.guest_ports,
                copy_disks=plan.copy_disks,
                predecessor=plan.predecessor,
                qcow2_disks=tuple(qcow2_files(plan.spec)),
                downstairs=tuple(downstairs_of(plan.spec)),
                metric_addr=await self._registry_on(session),
            ),
            session=session,
            log_dir=self._log_dir,
            start_timeout_s=plan.boot_timeout_s,
            images=self.images(session, timeout_s=plan.boot_timeout_s),
            taken=taken,
            phases=phases,
            progress=self._progress,
        )
        vm = TestVm(
            name=plan.name,
            server=ServerHandle(
                host=session.host,
                client=PropolisClient(served.endpoint, vm=plan.name, log_path=served.log_path),
                vm_id=served.vm_id,
                program=plan.server,
                migrations=served.migrations,
                copies_disks=plan.copy_disks,
                has_ports=plan.guest_ports,
                has_display=plan.display,
            ),
            guest=plan.guest,
            spec=plan.spec,
            properties=plan.properties,
            log_path=self._serial_log(plan.name),
            boot_timeout_s=plan.boot_timeout_s,
            boot_source=plan.boot_source,
            phases=phases,
        )
        return await taken.enter_async_context(vm)

    async def succession(
        self, session: HostSession, vm: TestVm, name: str, spec: InstanceSpec, *, server: str | Path, copy_disks: bool
    ) -> VmPlan:
        """Return the plan of a VM that can replace another one.

        :param vm: the other one, which may be on another host; then its disks are copied in any case.
        """
        is_elsewhere = session.host.name != vm.host.name
        return VmPlan(
            name=name,
            guest=vm.guest,
            spec=spec,
            properties=successor_properties(vm.properties, name),
            boot_source=await self._boot_source_on(session, vm) if is_elsewhere else vm.boot_source,
            boot_timeout_s=vm.boot_timeout_s,
            server=server,
            display=vm.has_display,
            guest_ports=vm.has_ports,
            copy_disks=copy_disks or is_elsewhere,
            predecessor=vm.id if vm.id and not is_elsewhere else None,
        )

    async def _boot_source_on(self, session: HostSession, vm: TestVm) -> BootSource:
        """Return a VM's boot source, with the files of another host."""
        if not isinstance(vm.boot_source, DirectKernel):
            return vm.boot_source
        image = await self._image(session, vm.guest, timeout_s=vm.boot_timeout_s)
        return msgspec.structs.replace(
            vm.boot_source, kernel=str(image.kernel), initrd=str(image.initrd) if image.initrd else None
        )

    async def _registry_on(self, session: HostSession) -> str | None:
        """Return the address at which servers on a host register for metrics; None for no metrics.

        :raises HostError: when they cannot reach this machine.
        """
        if self._metric_addr is None:
            return None
        host = session.host
        if host.name not in self._registries:
            registry = Endpoint(base_url=f"http://{self._metric_addr}")
            self._registries[host.name] = await host.address_for_agent(registry, on=host)
        return self._registries[host.name]

    async def _image(self, session: HostSession, guest: GuestAdapter, *, timeout_s: float) -> ReadyImage:
        return await ready_image(session.host, session.agent, guest.image, timeout_s=timeout_s, progress=self._progress)

    def _serial_log(self, name: str) -> Path:
        return self._log_dir / f"{name}.serial.log"

    async def _attached(
        self,
        session: HostSession,
        disk: AttachedDisk,
        request: CreateDisk | None,
        taken: contextlib.AsyncExitStack,
        *,
        reader: str | None = None,
    ) -> AttachedDisk:
        """A disk that exists; one in memory does so without a request.

        :param reader: what reads it: `CreateDisk`.
        """
        if request is None:
            return disk
        created = await session.agent.create_disk(msgspec.structs.replace(request, reader=reader))
        session.own_disk(created.id, taken)
        return msgspec.structs.replace(disk, path=created.path)
