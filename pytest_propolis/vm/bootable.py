"""A VM at its server, from its creation until its guest accepts commands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..agent_api.guest_ports import SHELL_PORT
from ..agent_api.templates import BOUNDARY
from ..console.console import Console
from ..console.shell import Shell
from ..console.transports.port_line import PortLine
from ..errors import ApiError, BootError, ConsoleClosed, ConsoleError
from ..guests.adapter import GuestAdapter
from ..propolis_api import (
    FromSpec,
    InstanceEnsureRequest,
    InstanceProperties,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    SpecInit,
)
from ..propolis_api.client import Endpoint, PropolisClient
from ..propolis_api.serial import SerialConsoleMoved
from ..settings import BootKind
from .config import Nic
from .disks.crucible_disk import VolumeDisk, with_volumes
from .disks.image_fork import ForkDisk
from .guest_access import GuestAccess
from .instance import OUTPUT_TIMEOUT_S
from .login import ended_before_reset, log_in
from .migration import TERMINAL
from .networks.network import Network
from .server_handle import ServerHandle
from .timings import Timings
from .warm_start.fork_handle import ForkHandle
from .warm_start.identity import assign_identity

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from .guest_nodes.guest_node import GuestNode

__all__ = ["BootableVm"]

REBOOT_TIMEOUT_S: Final = 5.0
"""How long a reboot command may take to fail; a guest that takes longer is waited for as one that boots."""

ENDING: Final = TERMINAL | {InstanceState.STOPPING, InstanceState.STOPPED}
BOOT_HINT: Final = "see the console above; a slow machine may need a longer --propolis-boot-timeout"


class BootableVm(GuestAccess):
    """Creates a VM at its server, runs it, logs in to its guest, and does so again after a reset.

    :param forked: what the guest was forked from; None for one that boots.
    """

    def __init__(
        self,
        *,
        name: str,
        server: ServerHandle,
        guest: GuestAdapter,
        spec: InstanceSpec,
        properties: InstanceProperties,
        log_path: Path,
        boot_timeout_s: float,
        forked: ForkHandle | None,
        phases: Timings | None,
    ) -> None:
        super().__init__(name=name, server=server, log_path=log_path, phases=phases)
        self.guest = guest
        self.spec = spec
        self.properties = properties
        self.boot_kind: BootKind = "cold" if forked is None else "warm"
        """Whether it boots, or was forked from a guest that was booted before."""
        self.boot_log = ""
        """What the console showed until the log-in was complete."""
        self.volumes: list[VolumeDisk] = []
        """Its replicated disks."""
        self.forks: list[ForkDisk] = []
        """Its disks that are forks of images."""
        self.nics: tuple[Nic, ...] = ()
        """Its cards in networks between VMs."""
        self.guest_nodes: list[GuestNode] = []
        """What makes the guest a node of a group, and does so again when it has booted again."""
        self.boot_timeout_s = boot_timeout_s
        self._forked = forked
        self._successor: tuple[Endpoint, str] | None = None
        """Where this process finds the server that the guest migrates to, and the URL by which that calls itself."""
        self._port: PortLine | None = None
        """The guest port that commands go over; None if they go over the console."""
        self._resources = contextlib.AsyncExitStack()

    async def ensure(self) -> None:
        """Create the VM at its server, without running it, and open its console. Creating it twice is fine.

        :raises ApiError: when the server refuses the spec, or cannot set the VM up.
        """
        if await self._is_active():
            return
        self.spec = with_volumes(self.spec, self.volumes)  # as they are now, as in PHD
        request = InstanceEnsureRequest(properties=self.properties, init=SpecInit(FromSpec(spec=self.spec)))
        await self._api().instance_ensure(request)
        self._hold_volumes(self.volumes)
        if self._forked is None:
            self.boot_kind = "cold"  # also after a fork was stopped
        await self._open_console()

    async def run_instance(self) -> None:
        """Ask the server to run the VM."""
        await self._api().instance_state_put(InstanceStateRequested.RUN)

    async def launch(self) -> None:
        """Create the VM if it was not, and let it run; does not wait for the guest."""
        if self._forked is not None and self._forked.runs and self._console is None:
            await self._open_console()
        else:
            await self.ensure()
            await self.run_instance()

    async def boot(self) -> None:
        """Launch the VM, and wait until its guest accepts commands. No effect if it does already.

        :raises BootError: when it does not in time, or stops instead.
        """
        await self.launch()
        if self._forked is not None or not self.shell.is_up:  # a fork takes commands before it has an identity
            await self.wait_to_boot()

    async def wait_to_boot(self, *, timeout_s: float | None = None) -> None:
        """Wait until the guest has booted, log in, and make its shell accept commands.

        :raises BootError: when that does not happen in time, or the VM stops instead.
        """
        limit_s = self.boot_timeout_s if timeout_s is None else timeout_s
        self.kernel_failures.ends.allow()  # the test waits for a boot, and so knows of the reset before it
        self.kernel_failures.ends.acknowledge()
        try:
            async with asyncio.timeout(limit_s):
                if self._forked is None:
                    await self._log_in(limit_s)
                else:
                    await assign_identity(self.shell, self.guest, self._forked, phases=self.phases, timeout_s=limit_s)
                    self._forked = None  # what comes now is a boot
        except TimeoutError:
            raise self._boot_error("did not come up to a login", waited_s=limit_s) from None
        except ConsoleClosed as error:
            state = await self._last_state()
            raise self._boot_error(f"stopped while it booted (state {state}): {error.message}") from None
        self.kernel_failures.ends.watch()
        await self._set_up_networks()
        for node in self.guest_nodes:
            node.reset()
            await node.start()

    def address(self, network: Network) -> str:
        """Return the VM's address in a network between VMs: `Network.address`."""
        return network.address(self)

    async def reset(self) -> None:
        """Reset the VM, as its reset button would; does not wait. Follow with `wait_to_boot`."""
        self._forget_shell()
        await self._api().instance_state_put(InstanceStateRequested.REBOOT)

    async def graceful_reboot(self) -> None:
        """Make the guest reboot itself, and wait until it accepts commands again.

        :raises BootError: when it does not come up again.
        """
        shell = self.shell
        await shell.run_detached(self.guest.reboot_command)
        self.console.transcript.skip()
        await shell.until_left(timeout_s=REBOOT_TIMEOUT_S)
        self._forget_shell(skipping=False)
        await self.wait_to_boot()

    def _hold_volumes(self, disks: Iterable[VolumeDisk]) -> None:
        """These replicated disks are this VM's from now on."""
        for disk in disks:
            if disk not in self.volumes:
                self.volumes.append(disk)
            disk.volume.attach_to(self, disk.backend_key)

    def _hold_forks(self, disks: Iterable[ForkDisk]) -> None:
        """These forks of images are disks of this VM."""
        for disk in disks:
            self.forks.append(disk)
            disk.fork.attach_to(self, readonly=disk.readonly)

    async def _log_in(self, limit_s: float) -> None:
        while not await ended_before_reset(self.console, self._log_in_once(limit_s)):
            self.console.note("the guest has reset its machine while it was logged in to: waiting for its next prompt")

    async def _log_in_once(self, limit_s: float) -> None:
        self.console.transcript.skip_to(self.console.boot_start)  # a prompt from before a reset is none
        with self.phases.during("login"):
            panic = await log_in(self.guest, self.console)
        if panic is not None:
            self.kernel_failures.forget()  # the error tells of it
            raise self._boot_error(f"panicked while it booted: {panic}", hint="see the console above")
        self.boot_log = self.console.transcript.since(0)
        with self.phases.during("shell"):
            await self.shell.start(shell=self.guest.shell, wrapper=self.guest.shell_wrapper, timeout_s=limit_s)
        self.console.transcript.skip()  # a later boot must not find this one's prompt

    async def _set_up_networks(self) -> None:
        for nic in self.nics:
            assert nic.network is not None
            if nic.network.dhcp:
                continue
            address = f"{self.address(nic.network)}/{nic.network.subnet.prefixlen}"
            await self.run(self.guest.network_command(f"0000:00:{nic.pci_slot:02x}.0", address))

    async def _is_active(self) -> bool:
        """Return whether this VM is at its server already, and not about to end."""
        if self._console is None:
            return False
        try:
            return await self._state() not in ENDING
        except ApiError as error:
            if error.status != 424:
                raise
            return False

    async def _open_console(self) -> None:
        connection = await self._api().instance_serial(from_start=0)
        self._console = await self._resources.enter_async_context(
            Console.over(
                connection,
                vm=self.name,
                log_path=self.log_path,
                follow=self._follow,
                loss=self.endpoint.loss,
                failures=self.kernel_failures,
            )
        )
        if self.has_ports:
            line = PortLine.over(self._ports, SHELL_PORT, self._console)
            self._port = await self._resources.enter_async_context(line)
        self._shell = Shell(self._console, vm=self.name, port=self._port)
        if self._forked is not None:
            self._shell.resume(self._forked.vm.session, self._forked.typed_identity, shell=self.guest.shell)
            self.boot_log = (await self._console.wait_for(BOUNDARY, timeout_s=OUTPUT_TIMEOUT_S)).before
            self._console.transcript.hide(0)  # another VM's boot, which went well
            self.kernel_failures.forget()

    async def _follow(self, moved: SerialConsoleMoved) -> ClientConnection:
        try:
            endpoint = self._successor_endpoint(moved.destination)
        except ValueError as error:
            raise ConsoleError(f"the guest's new server cannot be determined: {error}", vm=self.name) from None
        async with PropolisClient(endpoint, vm=self.name) as there:
            return await there.instance_serial(from_start=moved.from_start)

    def _successor_endpoint(self, address: str) -> Endpoint:
        """Return where this process finds the server, maybe on another host, that calls itself by that address.

        :raises ValueError: when the address cannot be read.
        """
        endpoint = Endpoint.at(address)
        successor, name = self._successor or (endpoint, endpoint.base_url)
        return successor if name == endpoint.base_url else endpoint

    def _boot_error(self, message: str, *, hint: str = BOOT_HINT, **context: Any) -> BootError:
        return BootError(
            f"the guest {self.guest.name} {message}",
            vm=self.name,
            operation="boot",
            hint=hint,
            **self._evidence(),
            **context,
        )

    def _forget_shell(self, *, skipping: bool = True) -> None:
        """Forget the read-eval loop.

        :param skipping: from here on, nothing that the console showed before counts.
        """
        self._forked = None
        self.kernel_failures.ends.allow()
        if skipping:
            self.console.transcript.skip()
            self.console.boots_again()
        self.shell.abandon("the VM was reset")
        for node in self.guest_nodes:
            node.reset()
        self._shell = Shell(self.console, vm=self.name, port=self._port)
