"""The factory: makes VMs for a test, and takes them away."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..agent.protocol import CreateDisk, CreateVm
from ..engine.boot_source import BootSource, DirectKernel, Firmware
from ..errors import ConfigError
from ..guests.adapter import GuestAdapter
from ..guests.registry import GuestRegistry
from ..hosts.agent_client import AgentClient
from ..hosts.local import LocalHost
from ..propolis_api import InstanceProperties, InstanceSpec
from ..propolis_api.client import PropolisClient
from ..settings import Settings
from .config import BOOT_DISK, CompleteVmConfig, VmConfig
from .preparation import ReadyImage, ready_image
from .spec import (
    AttachedDisk,
    instance_properties,
    instance_spec,
    successor_properties,
    with_failure_injector,
)
from .test_vm import TestVm

__all__ = ["VmFactory"]

MIB = 1 << 20


class VmFactory:
    """Makes any number of VMs. What it made is gone when it is closed.

    :param group: what the VMs belong to, usually a test; their names are unique in it.
    :param log_dir: the directory for their logs; it is made with the first VM.
    :param made: receives each VM as soon as there is one, for reports.
    """

    def __init__(
        self,
        *,
        agent: AgentClient,
        settings: Settings,
        guests: GuestRegistry,
        group: str,
        log_dir: Path,
        progress: Callable[[str], None],
        made: Callable[[TestVm], None],
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._guests = guests
        self._group = group
        self._log_dir = log_dir
        self._progress = progress
        self._made = made
        self._names: set[str] = set()
        self._vms = contextlib.AsyncExitStack()

    @classmethod
    @contextlib.asynccontextmanager
    async def on(cls, host: LocalHost, **options: Any) -> AsyncIterator[VmFactory]:
        """A factory on a host, with everything that it makes."""
        agent = await host.client()
        factory = cls(agent=agent, **options)
        try:
            yield factory
        finally:
            try:
                await factory.aclose()
            finally:
                await agent.aclose()

    async def aclose(self) -> None:
        """Take all VMs away, the last one first. Closing twice is fine."""
        await self._vms.aclose()

    async def start(self, name: str = "vm", **changes: Any) -> TestVm:
        """Make a VM and boot it: `create` and `TestVm.boot`.

        :param changes: fields of `VmConfig`.
        """
        return await self.start_config(VmConfig(name=name, **changes))

    async def start_config(self, config: VmConfig) -> TestVm:
        """Make the VM that a configuration describes, and boot it.

        :raises BootError: when its guest does not come up.
        """
        vm = await self.create_config(config)
        await vm.boot()
        return vm

    async def create(self, name: str = "vm", **changes: Any) -> TestVm:
        """Make a VM that does not run yet."""
        return await self.create_config(VmConfig(name=name, **changes))

    async def create_config(self, config: VmConfig) -> TestVm:
        """Make the VM that a configuration describes, not running yet.

        :raises ConfigError: when there is a VM of that name, or the guest cannot be had as asked for.
        :raises ArtifactError: when its image cannot be had.
        """
        self._require_new(config.name)
        complete = config.completed(self._settings)
        guest = self._guests.get(complete.guest)
        _check(complete, guest)
        async with self._keeping() as taken:
            vm = await self._create(complete, guest, taken)
            self._remember(vm)
        return vm

    async def successor(
        self,
        vm: TestVm,
        name: str | None = None,
        *,
        fail_migration_exports: int | None = None,
        fail_migration_imports: int | None = None,
    ) -> TestVm:
        """Make a VM that can take another one's place: the same instance with the same disks, at a server of its own.

        It does not run yet: `TestVm.migrate_from` takes the guest over, and `TestVm.boot` boots it from its disks, when
        the other VM has stopped. The disks stay the other VM's: they are gone when that one's factory is closed.

        :param name: by default the other one's, with a number.
        :param fail_migration_exports: as in `VmConfig`.
        :param fail_migration_imports: as in `VmConfig`.
        """
        name = name or self._successor_name(vm.name)
        self._require_new(name)
        spec = with_failure_injector(vm.spec, exports=fail_migration_exports, imports=fail_migration_imports)
        async with self._keeping() as taken:
            heir = await self._serve(
                name,
                guest=vm.guest,
                spec=spec,
                properties=successor_properties(vm.properties, name),
                boot_source=vm.boot_source,
                boot_timeout_s=vm.boot_timeout_s,
                taken=taken,
            )
            self._remember(heir)
        return heir

    @contextlib.asynccontextmanager
    async def _keeping(self) -> AsyncIterator[contextlib.AsyncExitStack]:
        """What is taken in the block is the factory's after it, and gone if the block fails."""
        async with contextlib.AsyncExitStack() as taken:
            yield taken
            await self._vms.enter_async_context(taken.pop_all())

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
        self._made(vm)

    async def _create(
        self, complete: CompleteVmConfig, guest: GuestAdapter, taken: contextlib.AsyncExitStack
    ) -> TestVm:
        config = complete.config
        image = await ready_image(self._agent, guest.image, timeout_s=complete.boot_timeout_s, progress=self._progress)
        disks = [disk async for disk in self._disks(config, image, taken)]
        default_order = (BOOT_DISK,) if image.disk else ()
        spec = instance_spec(
            cpus=complete.cpus,
            memory_mib=complete.memory_mib,
            disks=disks,
            boot_order=default_order if config.boot_order is None else config.boot_order,
        )
        spec = with_failure_injector(spec, exports=config.fail_migration_exports, imports=config.fail_migration_imports)
        return await self._serve(
            config.name,
            guest=guest,
            spec=spec,
            properties=instance_properties(config.name),
            boot_source=_boot_source(config, guest, image),
            boot_timeout_s=complete.boot_timeout_s,
            taken=taken,
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
    ) -> TestVm:
        """A server for a VM, and the VM, not created there yet."""
        self._log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_path = str(self._log_dir / f"{name}.qemu.log")
        created = await self._agent.create_vm(
            CreateVm(name=name, group=self._group, boot=boot_source, log_path=log_path)
        )
        taken.push_async_callback(self._agent.remove_vm, created.id)
        vm = TestVm(
            name=name,
            client=PropolisClient(self._agent.endpoint(created.path), vm=name),
            guest=guest,
            spec=spec,
            properties=properties,
            log_path=self._log_dir / f"{name}.serial.log",
            boot_timeout_s=boot_timeout_s,
            boot_source=boot_source,
            migrations=partial(self._agent.migrations, created.path),
        )
        return await taken.enter_async_context(vm)

    async def _disks(
        self, config: VmConfig, image: ReadyImage, taken: contextlib.AsyncExitStack
    ) -> AsyncIterator[AttachedDisk]:
        if image.disk is not None:
            request = CreateDisk(image=str(image.disk), image_format="qcow2")
            path = await self._create_disk(request, taken)
            yield AttachedDisk(name=BOOT_DISK, path=path, interface=config.disk_interface)
        for disk in config.disks:
            if disk.image is not None:
                request = CreateDisk(image=str(disk.image), image_format=disk.image_format)
            else:
                request = CreateDisk(size_bytes=(disk.size_mib or 0) * MIB)
            path = await self._create_disk(request, taken)
            yield AttachedDisk(name=disk.name, path=path, interface=disk.interface)

    async def _create_disk(self, request: CreateDisk, taken: contextlib.AsyncExitStack) -> str:
        disk = await self._agent.create_disk(request)
        taken.push_async_callback(self._agent.remove_disk, disk.id)
        return disk.path


def _check(complete: CompleteVmConfig, guest: GuestAdapter) -> None:
    if complete.memory_mib < guest.minimum_memory_mib:
        raise ConfigError(
            f"VM {complete.config.name!r}: {complete.memory_mib} MiB of memory are too few for {guest.name}",
            hint=f"give it at least {guest.minimum_memory_mib} MiB",
        )


def _boot_source(config: VmConfig, guest: GuestAdapter, image: ReadyImage) -> BootSource:
    wanted = config.firmware or ("none" if image.kernel else "bios")
    if wanted == "none":
        if image.kernel is None:
            raise ConfigError(f"the guest {guest.name} has no kernel of its own", hint="choose a firmware")
        command_line = f"{guest.image.command_line} {config.kernel_arguments}".strip()
        return DirectKernel(
            kernel=str(image.kernel),
            initrd=str(image.initrd) if image.initrd else None,
            command_line=command_line,
        )
    if config.kernel_arguments:
        raise ConfigError(f"VM {config.name!r}: kernel_arguments have no effect with firmware")
    if wanted == "uefi":
        return Firmware(uefi=True)
    return Firmware()
