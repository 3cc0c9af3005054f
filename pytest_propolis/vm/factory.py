"""The factory: makes VMs for a test, and takes them away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from ..agent.protocol import Belongings, CreateDisk, CreateVm, Keep, KeptListed
from ..console.log import make_log_directory
from ..engine.boot_source import BootSource, DirectKernel, Firmware
from ..errors import ArtifactMissing, ConfigError
from ..guests.adapter import GuestAdapter
from ..guests.registry import GuestRegistry
from ..hosts.agent_client import AgentClient
from ..hosts.local import LocalHost
from ..propolis_api.client import PropolisClient
from ..settings import Settings
from .config import BOOT_DISK, CompleteVmConfig, DataDisk, VmConfig
from .preparation import ReadyImage, ready_image
from .spec import AttachedDisk, instance_properties, instance_spec
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
        self._vm_ids: list[str] = []
        self._disk_ids: list[str] = []
        self.vms: list[TestVm] = []
        """All VMs that were made, in that order."""
        self._taken: list[contextlib.AsyncExitStack] = []

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
            factory = cls(agent=agent, **options)
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
    def belongings(self) -> Belongings:
        """The VMs and disks that were made; they may be gone."""
        return Belongings(vms=tuple(self._vm_ids), disks=tuple(self._disk_ids))

    async def hand_over(self) -> None:
        """Leave the VMs' consoles to a person: `TestVm.hand_over`."""
        await asyncio.gather(*(vm.hand_over() for vm in self.vms))

    async def set_aside(self) -> Belongings:
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
        if config.name in self._names:
            raise ConfigError(
                f"there is a VM named {config.name!r} in this test already", hint="give each VM of a test its own name"
            )
        complete = config.completed(self._settings)
        guest = self._guests.get(complete.guest)
        _check(complete, guest)
        async with contextlib.AsyncExitStack() as taken:
            vm = await self._create(complete, guest, taken)
            self._names.add(config.name)
            self.vms.append(vm)
            self._made(vm)
            self._taken.append(taken.pop_all())
        return vm

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
            nics=config.nics,
            cpuid=config.cpuid,
            hyper_v=config.hyper_v,
        )
        make_log_directory(self._log_dir)
        created = await self._agent.create_vm(
            CreateVm(
                name=config.name,
                group=self._group,
                boot=_boot_source(config, guest, image),
                log_path=str(self._log_dir / f"{config.name}.qemu.log"),
                display=config.display,
            )
        )
        self._vm_ids.append(created.id)
        taken.push_async_callback(self._agent.remove_vm, created.id)
        vm = TestVm(
            name=config.name,
            client=PropolisClient(self._agent.endpoint(created.path), vm=config.name),
            guest=guest,
            spec=spec,
            properties=instance_properties(config.name),
            log_path=self._log_dir / f"{config.name}.serial.log",
            boot_timeout_s=complete.boot_timeout_s,
            vm_id=created.id,
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
            in_memory = disk.is_in_memory
            yield AttachedDisk(
                name=disk.name,
                path=None if in_memory else await self._create_disk(_disk_request(disk), taken),
                contents=_contents(disk) if in_memory else None,
                interface=disk.interface,
                readonly=disk.readonly,
                block_size=disk.block_size,
                pci_slot=disk.pci_slot,
            )

    async def _create_disk(self, request: CreateDisk, taken: contextlib.AsyncExitStack) -> str:
        disk = await self._agent.create_disk(request)
        self._disk_ids.append(disk.id)
        taken.push_async_callback(self._agent.remove_disk, disk.id)
        return disk.path


async def _clear_away(host: LocalHost, agent: AgentClient) -> None:
    while host.unfinished:
        await agent.remove(host.unfinished[-1].belongings)
        host.unfinished.pop()


def _disk_request(disk: DataDisk) -> CreateDisk:
    if disk.image is not None:
        return CreateDisk(image=str(disk.image), image_format=disk.image_format)
    return CreateDisk(size_bytes=(disk.size_mib or 0) * MIB)


def _contents(disk: DataDisk) -> bytes:
    if disk.image is None:
        return disk.contents or bytes((disk.size_mib or 0) * MIB)
    try:
        return disk.image.read_bytes()
    except OSError as error:
        raise ArtifactMissing(f"data disk {disk.name!r}: {error}", hint="correct the path of its image") from None


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
