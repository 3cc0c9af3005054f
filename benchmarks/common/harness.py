"""The project as its fixtures use it, without pytest: a host with its agent, and a factory of VMs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_propolis.engine.qemu.accelerator.acceleration import acceleration_arguments
from pytest_propolis.engine.qemu.accelerator.probe import AcceleratorName
from pytest_propolis.guests.adapter import GuestAdapter
from pytest_propolis.guests.registry import GuestRegistry
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import run_token
from pytest_propolis.settings import BootKind, Settings
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.provisioning.guest_images import ready_image
from pytest_propolis.vm.vm import TestVm

from ..floors.bare_guest import CPUS, MEMORY_MIB, AlpineFloor, BareGuest, GuestFiles, MicroFloor
from .options import Options, say

__all__ = ["Harness"]

FLOORS = {"micro": MicroFloor, "alpine": AlpineFloor}


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """A running agent and a factory, and floors of the same guests.

    :param directory: for logs and the floors' disks; removed when the harness closes.
    """

    settings: Settings
    host: LocalHost
    factory: VmFactory
    guests: GuestRegistry
    directory: Path

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, options: Options, *, standby: int = 0, boot: BootKind = "warm", guests: Iterable[GuestAdapter] = ()
    ) -> AsyncIterator[Harness]:
        """Start an agent and open a factory. The VMs of the factory end when the context exits.

        :param guests: others than the built-in ones.
        """
        settings = Settings(
            cpus=CPUS, memory_mib=MEMORY_MIB, accelerator=options.accelerator, standby=standby, boot=boot
        )
        registry = GuestRegistry(guests)
        host = LocalHost(settings, run_id=run_token(None))
        with tempfile.TemporaryDirectory(prefix="propolis-benchmark-") as name:
            try:
                async with VmFactory.on(
                    [host],
                    settings=settings,
                    guests=registry,
                    group="benchmark",
                    log_dir=Path(name) / "logs",
                    progress=say,
                    made=lambda vm: None,
                    artifact=lambda name: None,
                ) as factory:
                    yield cls(settings=settings, host=host, factory=factory, guests=registry, directory=Path(name))
            finally:
                host.close()

    async def floor(self, guest: str) -> BareGuest:
        """Return the floor of a guest, not started yet, with the agent's accelerator and CPU model."""
        files, accelerator = await self.files(guest)
        return FLOORS[guest](files, acceleration=acceleration_arguments(accelerator), directory=self.directory)

    @contextlib.asynccontextmanager
    async def pair(self, guest: str) -> AsyncIterator[tuple[TestVm, BareGuest]]:
        """Boot a VM and the floor of the same guest together, so that other load affects both."""
        say(f"booting {guest} twice")
        vm = await self.factory.start("vm", guest=guest)
        with await self.floor(guest) as bare:
            bare.start()
            bare.log_in()
            bare.start_loop()
            yield vm, bare

    async def files(self, guest: str) -> tuple[GuestFiles, AcceleratorName]:
        """Return a guest's boot files, fetched and prepared, and the accelerator that the agent chose."""
        image = self.guests.get(guest).image
        agent = await self.host.client()
        try:
            ready = await ready_image(self.host, agent, image, timeout_s=self.settings.boot_timeout, progress=say)
            accelerator = (await agent.info()).accelerator
        finally:
            await agent.aclose()
        assert ready.kernel is not None
        assert ready.initrd is not None
        files = GuestFiles(kernel=ready.kernel, initrd=ready.initrd, command_line=image.command_line, disk=ready.disk)
        return files, "kvm" if accelerator == "kvm" else "tcg"
