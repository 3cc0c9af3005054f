"""Templates of a factory: which VMs may be forks, and how the template of a kind is made."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from ...agent_api.boot_source import BootSource, DirectKernel
from ...agent_api.disks import CreateDisk
from ...agent_api.templates import FreezeVm, TemplateMaking, TemplateNeeded, disk_file
from ...errors import BootError, PropolisError, TemplateError
from ...guests.adapter import GuestAdapter
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host, log_path_on
from ...propolis_api.client import PropolisClient
from ...settings import ENGINE
from ..config import CompleteVmConfig
from ..disks.layout import firmware_of
from ..instance_spec.builder import AttachedDisk, instance_properties, instance_spec
from ..instance_spec.pci_slots import BOOT_DISK_SLOT
from ..server_handle import ServerHandle
from ..vm import TestVm
from .identity import prepare_snapshot, warmup_input

__all__ = ["TemplateKey", "TemplateKind", "TemplateMaker", "cold_reason"]

PREPARE_TIMEOUT_S = 60.0


def cold_reason(complete: CompleteVmConfig, guest: GuestAdapter) -> str | None:
    """Return why a VM must boot even if a fork is preferred; None if it may be a fork."""
    config = complete.config
    reasons = {
        "it was asked for": complete.boot == "cold",
        f"it is served by {complete.server}": complete.server != ENGINE,
        f"{guest.name} cannot be forked": not guest.forkable,
        "firmware boots it": firmware_of(config, guest) != "none",
        "a disk of the test boots it": config.boot_disk is not None,
        "it has a boot order": config.boot_order is not None,
        # QEMU cannot save an NVMe controller.
        "an NVMe disk boots it": config.disk_interface == "nvme",
        # A guest that boots detects it first; a restored one has already detected its boot disk first.
        "a disk has the PCI slot of its boot disk, or a lower one": guest.image.disk is not None
        and any(disk.pci_slot is not None and disk.pci_slot <= BOOT_DISK_SLOT for disk in config.disks),
        "it has a display": config.display,
        "its migrations are to fail": (config.fail_migration_exports, config.fail_migration_imports) != (None, None),
        "its CPUID is described": config.cpuid is not None or config.hyper_v is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class TemplateKind(msgspec.Struct, frozen=True):
    """What all forks of one template have in common, as far as it is known without its image.

    :param complete: the configuration of any of them.
    """

    guest: GuestAdapter
    complete: CompleteVmConfig

    @classmethod
    def of(cls, complete: CompleteVmConfig, guest: GuestAdapter) -> Self:
        """Return the kind of a VM, whatever its name."""
        config = dataclasses.replace(complete.config, name="any")
        return cls(guest, msgspec.structs.replace(complete, config=config))

    @property
    def title(self) -> str:
        return f"{self.guest.name} ({self.complete.cpus} CPUs, {self.complete.memory_mib} MiB)"


class TemplateKey(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of template with what it is made of on a host.

    :param boot: what its guest starts from.
    :param disks: for each disk, its name and source.
    """

    kind: TemplateKind
    boot: BootSource
    disks: tuple[tuple[AttachedDisk, CreateDisk | None], ...]
    boot_order: tuple[str, ...]

    def needed(self, log_path: str) -> TemplateNeeded:
        attached = [msgspec.structs.replace(disk, path=disk_file(index)) for index, (disk, _) in enumerate(self.disks)]
        assert isinstance(self.boot, DirectKernel)
        return TemplateNeeded(
            title=self.kind.title,
            boot=self.boot,
            spec=instance_spec(
                cpus=self.kind.complete.cpus,
                memory_mib=self.kind.complete.memory_mib,
                disks=attached,
                boot_order=self.boot_order,
            ),
            properties=instance_properties("template"),
            disks=tuple(create for _, create in self.disks if create),
            guest=self.kind.guest.fingerprint,
            log_path=log_path,
            guest_ports=self.kind.complete.config.has_ports,
        )


class TemplateMaker:
    """Makes templates through one agent."""

    def __init__(self, host: Host, agent: AsyncAgentClient, *, log_dir: Path, progress: Callable[[str], None]) -> None:
        self._host = host
        self._agent = agent
        self._log_dir = log_dir
        self._qemu_log = log_dir / "template.qemu.log"
        self._progress = progress

    async def key(self, key: TemplateKey) -> str:
        """Return the name of a template at the agent; make the template if it does not exist.

        :raises TemplateError: when it cannot be.
        :raises BootError: when its guest does not boot in time; it would not boot from cold either.
        """
        needed = key.needed(log_path_on(self._host, self._qemu_log))
        # The boot has its own limit, which must expire first, because its error contains the console.
        limit_s = key.kind.complete.boot_timeout_s + PREPARE_TIMEOUT_S
        try:
            async with asyncio.timeout(limit_s):
                await self._host.provide_derived(needed, self._progress, title=f"the template of {needed.title}")
                return await self._agent.get_template(
                    needed, self._progress, lambda making: self._make(key, needed, making)
                )
        except TimeoutError:
            raise TemplateError(f"its template was not made within {limit_s:.0f} s") from None

    async def _make(self, key: TemplateKey, needed: TemplateNeeded, making: TemplateMaking) -> None:
        vm = TestVm(
            name="template",
            server=ServerHandle(
                host=self._host,
                client=PropolisClient(self._agent.endpoint(making.path), vm="template", log_path=self._qemu_log),
                has_ports=key.kind.complete.config.has_ports,
            ),
            guest=key.kind.guest,
            spec=making.spec,
            properties=needed.properties,
            log_path=self._log_dir / "template.serial.log",
            boot_timeout_s=key.kind.complete.boot_timeout_s,
            boot_source=key.boot,
        )
        try:
            await vm.boot()
            await prepare_snapshot(vm.shell, key.kind.guest, name=vm.name, timeout_s=PREPARE_TIMEOUT_S)
            session = vm.shell.session
            typed = warmup_input(key.kind.guest, name=vm.name, session=session, over_port=vm.has_ports)
            facts = FreezeVm(
                session=session, console=vm.boot_log, warmup_input=typed.text, warmup_marker=typed.succeeded
            )
            await self._agent.freeze(making.id, facts)
        except PropolisError as error:
            reason = error if _would_be_repeated(error) else TemplateError.because_of(error)
            await self._agent.give_up(making.id, reason)
        finally:
            await vm._detach()


def _would_be_repeated(error: PropolisError) -> bool:
    """Return whether a cold boot would reach the same limit. A guest that stops fails at once."""
    return isinstance(error, BootError) and error.waited_s is not None
