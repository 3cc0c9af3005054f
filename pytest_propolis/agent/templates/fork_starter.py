"""Start forks of templates on the agent's host, each in a directory of its own."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path

import msgspec

from ...agent_api.agent_process import AgentConfig
from ...engine.qemu.monitor import MachineError
from ...engine.server.server_config import ServerConfig
from ...engine.templates.restored_machine import RestoredMachine
from ...engine.templates.template import Template
from ...errors import TemplateError
from ...ledger.entry import Entry, command_line_tag
from ...ledger.writer import LedgerWriter
from ..disks.disk_space import DiskSpace
from ..hypervisor import HypervisorFinder

__all__ = ["ForkStarter", "StartedFork"]


class StartedFork(msgspec.Struct, frozen=True, kw_only=True):
    """A started fork without a state driver.

    :param directory: the ledger entry of its directory.
    :param disk_directory: the ledger entry of the directory of its disks; None for a fork without disks.
    :param config: the configuration of its future server, which includes the fork itself.
    """

    id: str
    directory: Entry
    config: ServerConfig
    fork: RestoredMachine
    writer: LedgerWriter
    disk_directory: Entry | None = None


class ForkStarter:
    """Starts forks."""

    def __init__(self, config: AgentConfig, hypervisors: HypervisorFinder, space: DiskSpace) -> None:
        self._config = config
        self._space = space
        self._hypervisors = hypervisors

    async def start(
        self, writer: LedgerWriter, template: Template, template_directory: Path, *, warm_up: bool = False
    ) -> StartedFork:
        """Start a fork, which then waits to be run. A call that fails or is cancelled leaves nothing behind.

        :param writer: records its directory and its process in the ledger.
        :param template_directory: where the template is stored.
        :param warm_up: let its guest run a command first.
        :raises TemplateError: if QEMU cannot load the template.
        """
        started = await self._prepare(writer, template, template_directory)
        try:
            await started.fork.start()
            if warm_up:
                await started.fork.warm_up()
        except (MachineError, OSError, TimeoutError) as error:
            await self.discard(started)
            raise TemplateError(f"a fork does not start: {error or 'it does not answer'}") from None
        except BaseException:
            await asyncio.shield(self.discard(started))
            raise
        return started

    async def discard(self, started: StartedFork) -> None:
        """End a fork that has no driver, and remove its resources."""
        await started.fork.close()
        for directory in (started.config.disks, started.config.directory):
            shutil.rmtree(directory, ignore_errors=True)
        for entry in (started.directory, started.disk_directory):
            if entry is not None:
                started.writer.gone(entry)

    async def _prepare(self, writer: LedgerWriter, template: Template, template_directory: Path) -> StartedFork:
        hypervisor = await self._hypervisors.find()
        fork_id = secrets.token_hex(8)
        directory = Path(self._config.directory) / "vms" / fork_id
        disk_directory = self._space.directory() / fork_id if template.disks else None
        tag, log_path = f"{command_line_tag(self._config.run)}{fork_id}", directory / "qemu.log"
        fork = RestoredMachine(
            template,
            template_directory=template_directory,
            directory=disk_directory or directory,
            qemu=hypervisor.qemu,
            accelerator=hypervisor.accelerator.name,
            tag=tag,
            log_path=log_path,
            journal=writer,
        )
        with writer.creating("directory", directory) as entry:
            directory.mkdir(parents=True, mode=0o700)
            disks = self._make_disk_directory(writer, fork_id) if template.disks else None
        config = ServerConfig(
            tag=tag,
            qemu=hypervisor.qemu,
            accelerator=hypervisor.accelerator.name,
            boot=template.boot,
            directory=directory,
            log_path=log_path,
            journal=writer,
            fork=fork,
            guest_ports=template.guest_ports,
            disk_directory=disk_directory,
        )
        return StartedFork(id=fork_id, directory=entry, config=config, fork=fork, writer=writer, disk_directory=disks)

    def _make_disk_directory(self, writer: LedgerWriter, fork_id: str) -> Entry:
        directory = self._space.path_of(fork_id)
        with writer.creating("directory", directory) as entry:
            directory.mkdir(mode=0o700)
        return entry
