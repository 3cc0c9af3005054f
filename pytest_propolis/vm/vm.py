"""A virtual machine, as a test drives it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import uuid
from codecs import getincrementaldecoder
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from websockets.asyncio.client import ClientConnection

from ..agent_api.boot_source import BootSource
from ..agent_api.messages import ExtendedInfo
from ..agent_api.migration_report import MigrationReport
from ..agent_api.template_layout import BOUNDARY
from ..console.channels.guest_ports import GuestPorts
from ..console.channels.over_console import ConsoleChannel
from ..console.channels.over_port import PortChannel
from ..console.channels.process import GuestProcess, guest_process
from ..console.console import Console
from ..console.kernel.expected_panic import expected_panic
from ..console.kernel.failures import Expectation, KernelFailures
from ..console.kernel.messages import kernel_messages
from ..console.shell import CommandResult, Shell
from ..console.transcript import Found
from ..errors import (
    AgentError,
    ApiError,
    BootError,
    CapabilityMissing,
    ConfigError,
    ConsoleClosed,
    ConsoleError,
    MigrationError,
    PropolisError,
    ShellError,
    StateTimeout,
    VmStateError,
)
from ..field_checks import member_of
from ..guests.adapter import GuestAdapter
from ..hosts.host import Host
from ..hosts.vm_extensions import attach_disk, get_extended_info, get_screenshot
from ..propolis_api import (
    FromMigration,
    FromSpec,
    InstanceEnsureRequest,
    InstanceMigrateStatusResponse,
    InstanceProperties,
    InstanceSerialConsoleHistoryResponse,
    InstanceSpec,
    InstanceState,
    InstanceStateRequested,
    MigrationTargetInit,
    PresentSpec,
    SpecInit,
)
from ..propolis_api.client import Endpoint, PropolisClient
from ..propolis_api.serial import SerialConsoleMoved
from ..settings import BootKind
from .config import Nic
from .disks.crucible_disk import CrucibleDisk, VolumeDisk, with_volumes
from .files.progress import OnProgress
from .files.remote_path import GuestPath
from .files.transfers import FileTransfers, LocalPath
from .instance_spec.builder import disk_components, free_slot
from .login import log_in
from .migration import TERMINAL, Report, migration_limit_s, until_migrated
from .networks.forwarding import forward
from .networks.network import Network
from .replacements import replacements
from .timings import Timings
from .warm_start.fork_handle import ForkHandle
from .warm_start.identity import assign_identity

if TYPE_CHECKING:
    from ..coordination.group import NodeGroup
    from ..coordination.node import Node

__all__ = ["TestVm"]

STATE_TIMEOUT_S: Final = 60.0
COMMAND_TIMEOUT_S: Final = 300.0
OUTPUT_TIMEOUT_S: Final = 60.0
HAND_OVER_TIMEOUT_S: Final = 15.0
REBOOT_TIMEOUT_S: Final = 5.0
"""How long a reboot command may take to fail; a guest that takes longer is waited for as one that boots."""
DESTROY_TIMEOUT_S: Final = 5.0
LAST_STATE_TIMEOUT_S: Final = 2.0
DEVICE_PATH: Final = (
    "modprobe -qa virtio_blk nvme; until for block in /sys/bus/pci/devices/{0}/virtio*/block/*"
    " /sys/bus/pci/devices/{0}/nvme/*/nvme*n1; do test -d $block && break; done; do sleep 0.02; done;"
    " echo /dev/${{block##*/}}"
)
"""Prints where a guest has a disk, once its kernel has found it."""

ENDING: Final = TERMINAL | {InstanceState.STOPPING, InstanceState.STOPPED}
BOOT_HINT: Final = "see the console above; a slow machine may need a longer --propolis-boot-timeout"


class TestVm:
    """One VM and the Propolis server around it.

    It belongs to the event loop that it was made in. Every wait has a deadline, and an error says what was waited for,
    how long, and what the console showed last.
    """

    __test__: Final = False  # pytest is not to collect it

    def __init__(
        self,
        *,
        name: str,
        host: Host,
        client: PropolisClient,
        guest: GuestAdapter,
        spec: InstanceSpec,
        properties: InstanceProperties,
        log_path: Path,
        boot_timeout_s: float,
        boot_source: BootSource,
        vm_id: str = "",
        forked: ForkHandle | None = None,
        phases: Timings | None = None,
        migrations: Report | None = None,
        copies_disks: bool = False,
        has_ports: bool = False,
    ) -> None:
        self.name = name
        self.host = host
        """The host that its server is on."""
        self.id = vm_id
        self.guest = guest
        self.spec = spec
        self.properties = properties
        self.log_path = log_path
        self.boot_source = boot_source
        self._client = client
        self.boot_kind: BootKind = "cold" if forked is None else "warm"
        """Whether it boots, or was forked from a guest that was booted before."""
        self.phases = phases or Timings()
        """How long the steps up to its first command took."""
        self.boot_log = ""
        """What the console showed until the log-in was complete."""
        self.volumes: list[VolumeDisk] = []
        """Its replicated disks."""
        self.nics: tuple[Nic, ...] = ()
        """Its cards in networks between VMs."""
        self._migrations = migrations
        self._copies_disks = copies_disks
        self.has_ports = has_ports
        """Whether files and streams go over guest ports: ``VmConfig(channel="port")``."""
        self._ports = GuestPorts(client.endpoint, vm=name)
        self.boot_timeout_s = boot_timeout_s
        self._forked = forked
        self._heir: Endpoint | None = None
        self.came_from: Host | None = None
        """The host that its guest has migrated from last."""
        self.kernel_failures = KernelFailures(name)
        """What its console has shown of panics, oopses and BUGs that no test expected."""
        self._console: Console | None = None
        self._shell: Shell | None = None
        self._resources = contextlib.AsyncExitStack()
        self._loop = asyncio.get_running_loop()
        self._final_state: str | None = None

    def __repr__(self) -> str:
        return f"<TestVm {self.name!r} ({self.guest.name})>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # Life

    async def ensure(self) -> None:
        """Create the VM at its server, without running it, and open its console. Creating it twice is fine.

        :raises ApiError: when the server refuses the spec, or cannot set the VM up.
        """
        if await self._is_active():
            return
        self.spec = with_volumes(self.spec, self.volumes)  # as they are now, as in PHD
        request = InstanceEnsureRequest(properties=self.properties, init=SpecInit(FromSpec(spec=self.spec)))
        await self._api().instance_ensure(request)
        self.hold_volumes(self.volumes)
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
        """Launch the VM, and wait until its guest takes commands. Booting a guest that takes them already is fine.

        :raises BootError: when it does not in time, or stops instead.
        """
        await self.launch()
        if self._forked is not None or not self.shell.is_up:  # a fork takes commands before it has an identity
            await self.wait_to_boot()

    async def wait_to_boot(self, *, timeout_s: float | None = None) -> None:
        """Wait until the guest has come up, log in, and make its shell take commands.

        :raises BootError: when that does not happen in time, or the VM stops instead.
        """
        limit_s = self.boot_timeout_s if timeout_s is None else timeout_s
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
        await self._set_up_networks()

    async def _log_in(self, limit_s: float) -> None:
        with self.phases.during("login"):
            panic = await log_in(self.guest, self.console)
        if panic is not None:
            self.kernel_failures.forget()  # the error tells of it
            raise self._boot_error(f"panicked while it booted: {panic}", hint="see the console above")
        self.boot_log = self.console.transcript.since(0)
        with self.phases.during("shell"):
            await self.shell.start(shell=self.guest.shell, wrapper=self.guest.shell_wrapper, timeout_s=limit_s)

    def address(self, network: Network) -> str:
        """Return the VM's address in a network between VMs: `Network.address`."""
        return network.address(self)

    async def forward(self, port: int) -> int:
        """Have a port of this machine lead to a TCP port of the guest, which takes commands; return that port.

        It listens on 127.0.0.1, for tests that want SSH or HTTP into a guest, until the VM ends or migrates. The VM
        needs a card on the user-mode network (``Nic()``), which gets its address now if it has none.

        :raises ConfigError: when it has no such card, or there is no such port.
        :raises ApiError: when QEMU refuses.
        """
        return await forward(self, port)

    async def _set_up_networks(self) -> None:
        for nic in self.nics:
            assert nic.network is not None
            address = f"{self.address(nic.network)}/{nic.network.subnet.prefixlen}"
            await self.run(self.guest.network_command(f"0000:00:{nic.pci_slot:02x}.0", address))

    async def stop(self, *, timeout_s: float = STATE_TIMEOUT_S) -> None:
        """Stop the VM without asking its guest, and wait until it is destroyed.

        :raises StateTimeout: when it is not in time.
        """
        self._forked = None
        await self._api().instance_state_put(InstanceStateRequested.STOP)
        await self.wait_for_state(InstanceState.DESTROYED, timeout_s=timeout_s)

    async def reset(self) -> None:
        """Reset the VM, as its reset button would; does not wait. Follow with `wait_to_boot`."""
        self._forget_shell()
        await self._api().instance_state_put(InstanceStateRequested.REBOOT)

    async def graceful_reboot(self) -> None:
        """Have the guest reboot itself, and wait until it takes commands again.

        :raises BootError: when it does not come up again.
        """
        shell = self.shell
        await shell.run_detached(self.guest.reboot_command)
        self.console.transcript.skip()
        await shell.until_left(timeout_s=REBOOT_TIMEOUT_S)
        self._forget_shell(skipping=False)
        await self.wait_to_boot()

    async def migrate_from(
        self, source: TestVm, *, timeout_s: float | None = None, migration_id: uuid.UUID | None = None
    ) -> None:
        """Take the guest of another VM over, while it runs: this VM must not have been created yet.

        On return the guest is here, with the source's console, its shell and the commands under way in it. Neither is
        waited for that this VM is Running nor that the source is Destroyed.

        :param timeout_s: by default 90 s per GiB of the guest's memory, and 600 s more if its disks are copied.
        :raises MigrationError: when it fails, or is not done in time. The source runs on then.
        """
        self.spec = with_volumes(self.spec, self.volumes)
        default_s = migration_limit_s(self.spec, copies_disks=self._copies_disks)
        limit_s = default_s if timeout_s is None else timeout_s
        init = FromMigration(
            migration_id=migration_id or uuid.uuid4(),
            replace_components=replacements(self.spec),
            src_addr=await self.host.address_for_agent(source.endpoint, on=source.host),
        )
        source._heir = self.endpoint
        moved = source._console.moves() if source._console else None
        try:
            async with asyncio.timeout(limit_s):
                request = InstanceEnsureRequest(properties=self.properties, init=MigrationTargetInit(init))
                await self._api().instance_ensure(request)
                if failure := await until_migrated(self._api(), self._migrations):
                    raise MigrationError(failure, vm=self.name, log_path=str(self.log_path))
                self.hold_volumes(self.volumes)
                if moved:  # what is typed at the source from now on reaches no guest
                    await asyncio.wait([moved])
                self.spec = (await self.get_spec()).value  # with the disks that it has here
        except TimeoutError:
            raise self._migration_error(source, "is not done", waited_s=limit_s) from None
        except ApiError as error:
            raise self._migration_error(source, f"failed: {error.message}") from error
        self.came_from = source.host
        await self._take_console(source)

    async def aclose(self) -> None:
        """End the VM and everything opened for it, whatever state it is in. Closing twice is fine."""
        try:
            await self._end_vm()
        finally:
            await self._resources.aclose()
            self.kernel_failures.is_closed = True
            await self._client.aclose()

    async def release_console(self) -> None:
        """Leave the console to the user's own shell, if the guest takes commands: it takes none from then on."""
        if self._shell is not None and self._shell.is_up:
            with contextlib.suppress(PropolisError):  # a guest that hangs is worth a look, too
                await self._shell.release_console(timeout_s=HAND_OVER_TIMEOUT_S)

    async def let_go(self) -> None:
        """Close what was opened for the VM, and leave the VM as it is."""
        self._final_state = await self._last_state()
        await self.aclose()

    async def attach(self, disk: CrucibleDisk | VolumeDisk) -> str:
        """Plug a replicated disk into the VM, which runs; return the path of its device in the guest.

        :raises ConfigError: when another VM has the disk, or there is no free slot.
        :raises ApiError: when the server refuses.
        """
        plugged = disk if isinstance(disk, VolumeDisk) else disk.disk()
        await plugged.volume.require_free()
        plugged = dataclasses.replace(plugged, pci_slot=plugged.pci_slot or free_slot(self.spec))
        attached = plugged.attached()
        components = disk_components(attached)
        self.spec = await attach_disk(self._api().endpoint, components, vm=self.name)
        self.hold_volumes([plugged])
        address = f"0000:00:{attached.pci_slot:02x}.0"
        await self.run(self.guest.plugged_command([address]))
        return await self.run(DEVICE_PATH.format(address))

    def as_node(
        self,
        group: NodeGroup,
        name: str | None = None,
        *,
        address: str = "",
        labels: Iterable[str] = (),
        vital: bool = True,
    ) -> AbstractAsyncContextManager[Node]:
        """Make the guest a node of a group: inside the block its programs may run ``barrier ready 3`` and the like.

        The guest needs no network: its commands come over its second serial port. When the VM ends, the node has
        failed.

        :param name: the node's; by default the VM's.
        """
        from .guest_nodes.guest_node import guest_node

        return guest_node(self, group, name=name, address=address, labels=labels, vital=vital)

    async def is_active(self) -> bool:
        """Whether there is an instance that could be asked for something."""
        if self._final_state is not None:
            return False
        try:
            return await self.get_state() not in TERMINAL
        except (ApiError, AgentError):  # it is not created, or its server is gone
            return False

    async def may_have_disks(self) -> bool:
        """False when it has ended: then others may have its disks."""
        if self._final_state is not None:
            return False
        try:
            return await self.get_state() not in TERMINAL
        except ApiError as error:
            return error.status == HTTPStatus.FAILED_DEPENDENCY  # it is not created yet
        except AgentError:
            return False

    def hold_volumes(self, disks: Iterable[VolumeDisk]) -> None:
        """These replicated disks are this VM's from now on."""
        for disk in disks:
            if disk not in self.volumes:
                self.volumes.append(disk)
            disk.volume.given_to(self, disk.backend_key)

    # Commands

    async def run(
        self,
        command: str,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = True,
        on_output: Callable[[str], None] | None = None,
    ) -> str:
        """Run a shell command in the guest, and return what it wrote, without the newlines at the end.

        Commands share one shell: the directory and variables stay. Standard error is part of the output.

        :param on_output: called with the output as it comes, in pieces of any size.
        :raises CommandFailed: when its exit status is not 0; not with ``check=False``.
        :raises CommandTimeout: when it does not end in time; it is interrupted.
        :raises ShellLost: when the guest's shell does not answer.
        :raises ConsoleClosed: when the VM stops meanwhile.
        """
        return (await self.run_result(command, timeout_s=timeout_s, check=check, on_output=on_output)).text

    async def run_bytes(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S, check: bool = True) -> bytes:
        """As `run`, but the output as it is, to the byte."""
        return (await self.run_result(command, timeout_s=timeout_s, check=check)).output

    async def run_result(
        self,
        command: str,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        check: bool = False,
        on_output: Callable[[str], None] | None = None,
    ) -> CommandResult:
        """As `run`, but with the exit status; that is not checked unless asked for.

        Standard output and standard error come together, over one serial line; `process` has them apart.
        """
        with self.phases.during("first command"):
            return await self.shell.run(command, timeout_s=timeout_s, check=check, on_output=_decoded(on_output))

    async def kernel_messages(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> tuple[str, ...]:
        """Return what the guest's kernel has logged since it booted, by line, the oldest first.

        They come from the guest's ``dmesg``. Where it cannot run, as after a panic, they are what the console has shown
        with the kernel's time: fewer, if the kernel's log level for the console is low.

        :raises ConsoleError: before the VM is created.
        """
        return await kernel_messages(self.console, lambda: self.run("dmesg", timeout_s=timeout_s))

    def expect_panic(self, *, timeout_s: float = OUTPUT_TIMEOUT_S) -> AbstractAsyncContextManager[Expectation]:
        """Expect that the guest's kernel panics in the block: without it, a panic fails the test.

        ::

            async with vm.expect_panic() as panic:
                await vm.run("echo c > /proc/sysrq-trigger")
            assert panic.line == "Kernel panic - not syncing: sysrq triggered crash"

        The block ends when the panic is over. A wait for the guest that it ends with an error ends the block instead.
        Oopses in the block are expected, too. Go on with `reset` and `wait_to_boot`.

        :param timeout_s: how long the panic may take from the end of the block on.
        :raises ConsoleTimeout: when none comes.
        :raises ConsoleClosed: when the VM stops before.
        """
        return expected_panic(self.kernel_failures, lambda: self.console, timeout_s=timeout_s)

    @contextlib.asynccontextmanager
    async def process(self, command: str) -> AsyncIterator[GuestProcess]:
        """Start a shell command beside all others, with streams of its own; kill it at the end of the block.

        ::

            async with vm.process("tail -f /var/log/messages") as process:
                async for line in process.stdout:
                    ...

        It has a shell of its own, in the directory and with the exported variables of the shared one.

        :raises CapabilityMissing: when the VM has no guest ports: it was not made with ``VmConfig(channel="port")``.
        :raises ShellError: when it cannot be started.
        """
        async with guest_process(command, self.shell, self._ports) as process:
            yield process

    # Files

    async def put(
        self,
        content: LocalPath | bytes,
        remote: GuestPath,
        *,
        mode: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Copy a file, a directory or bytes into the guest, to a path there.

        A file appears under its name, and replaces one that is there, when it is complete; a directory must not exist.
        Modes and links are kept, owners are not.

        :param content: the path of a file or directory on this machine; or bytes, which become a file.
        :param remote: the file's or the directory's own path, not that of the directory in which to put it.
        :param mode: permissions of the file; by default those of the file here, and 0o644 for bytes.
        :param on_progress: called with a `Progress` now and then.
        :raises FileTransferError: when it does not get there. Nothing is under its name then but what was before.
        :raises CommandTimeout: when nothing moves for a minute.
        """
        await self._files().put(content, remote, mode=mode, on_progress=on_progress)

    async def get(self, remote: GuestPath, local: LocalPath, *, on_progress: OnProgress | None = None) -> None:
        """Copy a file or a directory out of the guest; what is said of `put` holds, the other way round."""
        await self._files().get(remote, local, on_progress=on_progress)

    async def get_bytes(self, remote: GuestPath) -> bytes:
        """Return the content of a file of the guest; also of one without a size, as in ``/proc``.

        :raises FileTransferError: when it cannot be read.
        """
        return await self._files().get_bytes(remote)

    def _files(self) -> FileTransfers:
        ports = PortChannel(self.shell, self._ports, vm=self.name) if self.has_ports else None
        return FileTransfers(shell=self.shell, channel=ports or ConsoleChannel(self.shell), vm=self.name)

    def debug(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a shell command from a debugger's prompt after a test has failed (``--pdb``), and return what it wrote.

        The command's status is not checked. Elsewhere, await `run`.

        :raises ConfigError: when the VM's event loop runs, as at a breakpoint inside of a test, or is closed.
        """
        if self._loop.is_running() or self._loop.is_closed():
            raise ConfigError(
                "its event loop runs" if self._loop.is_running() else "its event loop is closed",
                vm=self.name,
                hint=f"await `run` in the test, or use `propolis console {self.id}` in another terminal",
            )
        return self._loop.run_until_complete(self.run(command, timeout_s=timeout_s, check=False))

    @contextlib.asynccontextmanager
    async def interactive(self, *, timeout_s: float = OUTPUT_TIMEOUT_S) -> AsyncIterator[Console]:
        """The console as a terminal with the user's own shell: for programs that need one, job control, prompts.

        ::

            async with vm.interactive() as console:
                await console.send("sh -c 'echo up; sleep 100'\\n")
                await console.wait_for("\\nup\\n", timeout_s=10)
                await console.send(b"\\x1a")
                await console.wait_for("Stopped", timeout_s=10)

        A key that is typed before the program runs is the shell's: wait until the program has shown something.

        `run` is for after it.
        """
        async with self.shell.interactive(timeout_s=timeout_s) as console:
            yield console

    # The console

    @property
    def console(self) -> Console:
        """The serial console.

        :raises ConsoleError: before the VM is created.
        """
        self._require_loop()
        if self._console is None:
            raise ConsoleError("there is no console yet", vm=self.name, hint="call `launch` or `boot` first")
        return self._console

    @property
    def shell(self) -> Shell:
        """The guest's shell, which `run` uses.

        :raises ShellError: before the VM is created.
        """
        self._require_loop()
        if self._shell is None:
            raise ShellError("the guest takes no commands yet", vm=self.name, hint="call `boot` first")
        return self._shell

    async def wait_for_serial_output(
        self, pattern: str | re.Pattern[str], *, timeout_s: float = OUTPUT_TIMEOUT_S
    ) -> Found:
        """Wait until the console shows a text, or something that a regular expression matches.

        :raises ConsoleTimeout: when it does not in time.
        :raises ConsoleClosed: when the VM stops before.
        """
        return await self.console.wait_for(pattern, timeout_s=timeout_s)

    async def send_serial(self, data: str | bytes) -> None:
        """Type at the console: exactly this, without a newline at the end."""
        await self.console.send(data)

    # The server

    @property
    def client(self) -> PropolisClient:
        """The Propolis API of this VM's server."""
        return self._api()

    async def get_state(self) -> InstanceState:
        """The VM's state now."""
        return (await self._api().instance_get()).instance.state

    async def get_spec(self) -> PresentSpec:
        """Return the spec, as the server has it.

        :raises VmStateError: when it is not known yet: the VM waits for the source of a migration.
        """
        status = (await self._api().instance_spec_get()).spec
        if isinstance(status, PresentSpec):
            return status
        raise VmStateError("its spec comes with the guest that migrates in", vm=self.name, **self._evidence())

    async def screenshot(self) -> bytes:
        """What the VM's display shows, as a PNG image.

        :raises CapabilityMissing: when it has no display: it was not made with ``VmConfig(display=True)``.
        :raises ApiError: when it does not run.
        """
        return await get_screenshot(self._api().endpoint, vm=self.name)

    async def extended_info(self) -> ExtendedInfo:
        """What the API does not say: the display's VNC socket, and how often the guest reported a panic.

        :raises CapabilityMissing: when its server is not of this project.
        """
        return await get_extended_info(self._api().endpoint, vm=self.name)

    async def get_migration_state(self) -> InstanceMigrateStatusResponse:
        """How far the latest migrations into this VM's server and out of it are."""
        return await self._api().instance_migrate_status()

    async def get_migration_report(self) -> MigrationReport:
        """Return how the latest migrations into this VM's server and out of it went.

        It has the ways that memory and disks took, the pause, the phases, and how much was carried between hosts.

        :raises CapabilityMissing: when its server is not of this project.
        """
        if self._migrations is None:
            raise CapabilityMissing("its server does not report on migrations", vm=self.name)
        return await self._migrations()

    async def get_serial_console_history(
        self, from_start: int = 0, *, max_bytes: int | None = None
    ) -> InstanceSerialConsoleHistoryResponse:
        """What the guest has written to its console, as the server keeps it: the first and the last MiB.

        :param from_start: the offset of the first byte.
        :param max_bytes: how much to read at most; the server's default is 16 KiB.
        """
        return await self._api().instance_serial_history(from_start=from_start, max_bytes=max_bytes)

    async def wait_for_state(self, state: InstanceState | str, *, timeout_s: float = STATE_TIMEOUT_S) -> None:
        """Wait until the VM is in a state. States that it passed meanwhile may be missed.

        :param state: the state, or its name, as in ``"Running"``.
        :raises ConfigError: when there is no state of that name.
        :raises VmStateError: when it has ended otherwise, and can reach that state no more.
        :raises StateTimeout: when it does not get there in time.
        """
        wanted = member_of(InstanceState, state, what=f"VM {self.name!r}: the state to wait for")
        seen: InstanceState | None = None
        try:
            async with asyncio.timeout(timeout_s):
                gen = 0
                while seen is not wanted:
                    if seen in TERMINAL:
                        raise self._state_error(wanted, seen)
                    answer = await self._api().instance_state_monitor(gen)
                    gen, seen = answer.gen + 1, answer.state
        except TimeoutError:
            raise StateTimeout(
                f"it is {seen} and not {wanted}", vm=self.name, waited_s=timeout_s, **self._evidence()
            ) from None
        except ApiError as error:
            if error.status != 410:
                raise
            raise self._state_error(wanted, seen) from None

    # For reports, which are made outside of any event loop

    def console_tail(self) -> tuple[str, ...]:
        """The last lines that the console showed."""
        return self._console.tail() if self._console else ()

    @property
    def log_failure(self) -> str | None:
        """Why the console's log is incomplete; None if it is not."""
        return self._console.log.failure if self._console else None

    @property
    def final_state(self) -> str | None:
        """The state that the VM was in when it was taken away; None while it is there."""
        return self._final_state

    @property
    def endpoint(self) -> Endpoint:
        """Where the VM's server listens."""
        return self._client.endpoint

    # Inside

    async def _is_active(self) -> bool:
        """Whether this VM is at its server already, and not about to end."""
        if self._console is None:
            return False
        try:
            return await self.get_state() not in ENDING
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
        self._shell = Shell(self._console, vm=self.name)
        if self._forked is not None:
            self._shell.resume(self._forked.vm.session, self._forked.typed_identity)
            self.boot_log = (await self._console.wait_for(BOUNDARY, timeout_s=OUTPUT_TIMEOUT_S)).before
            self._console.transcript.hide(0)  # another VM's boot, which went well
            self.kernel_failures.forget()

    async def _follow(self, moved: SerialConsoleMoved) -> ClientConnection:
        try:
            endpoint = self._endpoint_of(moved.destination)
        except ValueError as error:
            raise ConsoleError(f"the guest's new place cannot be read: {error}", vm=self.name) from None
        async with PropolisClient(endpoint, vm=self.name) as there:
            return await there.instance_serial(from_start=moved.from_start)

    def _endpoint_of(self, address: str) -> Endpoint:
        """Where this process finds a server whose agent calls it by that address: on another host, by another socket.

        :raises ValueError: when the address cannot be read.
        """
        endpoint, heir = Endpoint.at(address), self._heir
        return heir if heir is not None and heir.base_url == endpoint.base_url else endpoint

    def _migration_error(self, source: TestVm, message: str, **context: Any) -> MigrationError:
        return MigrationError(f"the migration from {source.name!r} {message}", vm=self.name, **context)

    async def _take_console(self, source: TestVm) -> None:
        self._ports = source._ports
        self._ports.move_to(self.endpoint, vm=self.name)
        if source._console is None:
            await self._open_console()
            return
        self._console, source._console = source._console, None
        self._shell, source._shell = source._shell, None
        self.kernel_failures, source.kernel_failures = source.kernel_failures, self.kernel_failures
        self.kernel_failures.vm, source.kernel_failures.vm = self.name, source.name
        self._console.belongs_to(self.name, follow=self._follow, loss=self.endpoint.loss)
        if self._shell is not None:
            self._shell.belongs_to(self.name)
        await self._resources.enter_async_context(source._resources.pop_all())

    def _state_error(self, wanted: InstanceState, seen: InstanceState | None) -> VmStateError:
        return VmStateError(f"it is {seen}, and will not be {wanted} any more", vm=self.name, **self._evidence())

    def _boot_error(self, message: str, *, hint: str = BOOT_HINT, **context: Any) -> BootError:
        return BootError(
            f"the guest {self.guest.name} {message}",
            vm=self.name,
            operation="boot",
            hint=hint,
            **self._evidence(),
            **context,
        )

    def _evidence(self) -> dict[str, Any]:
        return {"console_tail": self.console_tail(), "log_path": str(self.log_path)}

    def _api(self) -> PropolisClient:
        self._require_loop()
        return self._client

    def _require_loop(self) -> None:
        # A debugger's prompt has no running loop: what needs none works there, and `debug` runs what does.
        if asyncio._get_running_loop() not in (None, self._loop):
            raise ConfigError(
                "it was made in another event loop than this test runs in",
                vm=self.name,
                hint="mark the test with the loop scope of the fixture that made the VM,"
                ' as in @pytest.mark.asyncio(loop_scope="module")',
            )

    def _forget_shell(self, *, skipping: bool = True) -> None:
        """Forget the read-eval loop.

        :param skipping: from here on, nothing that the console showed before counts.
        """
        self._forked = None
        if skipping:
            self.console.transcript.skip()
            self.console.boots_again()
        self.shell.abandon("the VM was reset")
        self._shell = Shell(self.console, vm=self.name)

    async def _last_state(self) -> str:
        try:
            async with asyncio.timeout(LAST_STATE_TIMEOUT_S):
                return (await self.get_state()).value
        except ApiError as error:
            return "not created" if error.status == 424 else "unknown"
        except (PropolisError, TimeoutError):
            return "unknown"

    async def _end_vm(self) -> None:
        """PUT Stop, then wait for Destroyed: the order in which nothing is torn from under a running guest."""
        if self._final_state is not None:
            return
        self._final_state = await self._last_state()
        with contextlib.suppress(PropolisError):
            await self._client.instance_state_put(InstanceStateRequested.STOP)
            await self.wait_for_state(InstanceState.DESTROYED, timeout_s=DESTROY_TIMEOUT_S)


def _decoded(on_output: Callable[[str], None] | None) -> Callable[[bytes], None] | None:
    """What takes bytes for a function that takes text; a character may come in two pieces."""
    if on_output is None:
        return None
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    return lambda data: on_output(decoder.decode(data))
