"""A server of the Propolis API as a child process of the agent: one for each VM."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ...agent_api.boot_source import BootSource, DirectKernel
from ...agent_api.server_program import ENGINE_PROGRAM, ServerProgram, unreadable_disk
from ...engine.qemu.binary import find_firmware
from ...errors import AgentError, ApiError, CapabilityMissing, HostError, PropolisError
from ...ledger.reaper import reap
from ...operating_system.child import Child, ChildRecord, Journal, NoJournal, spawn
from ...operating_system.python_processes import write_python_script
from ...operating_system.registry import system
from ...propolis_api import InstanceState, InstanceStateRequested
from ...propolis_api.client import PropolisClient
from ...propolis_api.connection.endpoint import Endpoint
from ...storage.files import open_log
from ...storage.programs import executable_program
from .program_help import QCOW2, cannot_be_run, help_names

__all__ = ["LOOPBACK", "ServerProcess"]

LOOPBACK: Final = "127.0.0.1"
FIRST_LOOK_S: Final = 0.01
LONGEST_LOOK_S: Final = 0.25
STOP_TIMEOUT_S: Final = 10.0
TERMINATION_TIMEOUT_S: Final = 10.0
PORT_ATTEMPTS: Final = 5
LAST_LINES: Final = 5
ENDS: Final = (InstanceState.DESTROYED, InstanceState.FAILED)
ENGINE_SCRIPT: Final = """\
import sys
sys.path[:0] = {path!r}
from pytest_propolis.cli.serve import main
main()
"""


class ServerProcess:
    """One process and the TCP port on which it serves. Create it, `start` it, and `close` it in any case.

    :param program: the program, and how long it may take to answer.
    :param boot: what its VM starts from.
    :param qcow2_disks: the paths of its VM's disks that are qcow2 files.
    :param own_options: returns the options that only this project's own server takes.
    :param directory: its working directory, which is removed when this is closed; so is `disk_directory`.
    :param log_path: receives what it prints.
    :param journal: keeps account of the process.
    :param metric_addr: where it registers for metrics; None for no metrics.
    :param base: where servers of this project have directories with ledgers: what a killed one leaves is removed.
    """

    own_disks: Final[tuple[Path, ...]] = ()

    def __init__(
        self,
        program: ServerProgram,
        *,
        boot: BootSource,
        qcow2_disks: Sequence[str] = (),
        own_options: Callable[[], Awaitable[Sequence[str]]],
        directory: Path,
        disk_directory: Path,
        log_path: Path,
        journal: Journal,
        base: Path,
        metric_addr: str | None = None,
    ) -> None:
        self._program = program
        self._boot = boot
        self._qcow2_disks = qcow2_disks
        self._own_options = own_options
        self._directories = (directory, disk_directory)
        self.log_path = log_path
        self._journal = journal
        self._base = base
        self._metrics = () if metric_addr is None else ("--metric-addr", metric_addr)
        self._path = program.path
        self._child: Child | None = None
        self._record: ChildRecord = NoJournal()
        self._log_start = 0
        self.port = 0
        self.state_name: str | None = None
        """The VM's state at the latest `refresh`; None while there is no VM."""

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.returncode is None else None

    async def start(self) -> None:
        """Start the program, and wait until it answers.

        :raises CapabilityMissing: when it cannot boot what is to be booted, or cannot read a disk.
        :raises HostError: when it cannot be run, exits, or does not answer in time, with its output.
        """
        self._path = await asyncio.to_thread(self._executable)
        await self._require_readable_disks()
        arguments = await self._boot_arguments()
        for attempt in range(PORT_ATTEMPTS):
            with _reserved_port() as self.port:
                await self._launch(arguments)
                if await self._answers(last=attempt == PORT_ATTEMPTS - 1):
                    return

    async def refresh(self) -> None:
        """Ask the server for the state of its VM."""
        if self.pid is None:
            self.state_name = None
            return
        with contextlib.suppress(PropolisError):
            async with self._client() as client:
                self.state_name = None
                self.state_name = (await client.instance_get()).instance.state.value

    async def close(self) -> None:
        """Stop the VM as a client would, end the program, and remove its directories. Idempotent."""
        if self._child is not None:
            await self._stop_vm()
            await self._terminate()
            if not await self._child.end():
                raise HostError(
                    f"process {self._child.pid} of {self._program.path} cannot be ended",
                    hint="the host's kernel log says what it waits for",
                )
            if self._child.returncode != 0:
                await asyncio.to_thread(reap, self._base)
            self._child = None
            self._keep_core()
        self._forget_record()
        for directory in self._directories:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def _executable(self) -> str:
        """Return the path of the program; of a copy, if it is an artifact from a store, where nothing is executable.

        The engine's own program is created: where a run has brought this project to a host, it is not installed.
        """
        path = Path(self._program.path)
        if self._program.path == ENGINE_PROGRAM:
            script = self._directories[0] / ENGINE_PROGRAM
            write_python_script(script, ENGINE_SCRIPT.format(path=[entry for entry in sys.path if entry]))
            return str(script)
        return str(executable_program(path, self._directories[0]))

    async def _require_readable_disks(self) -> None:
        """
        :raises CapabilityMissing: when a disk is in a format that the program may take for the contents of a raw disk.
        """
        if self._qcow2_disks and not await help_names(self._program.path, QCOW2):
            raise unreadable_disk(self._program.path, self._qcow2_disks[0])

    async def _boot_arguments(self) -> list[str]:
        """Return the options and BOOTROM_PATH for a VM's boot source."""
        is_own = await help_names(self._program.path, "--kernel")
        options = [*(await self._own_options() if is_own else ()), *self._metrics]
        if self._metrics and not await help_names(self._program.path, self._metrics[0]):
            raise CapabilityMissing(
                f"{self._program.path} has no option {self._metrics[0]}, and so no metrics",
                hint="take a newer one, or do not use the fixture `metrics` in this test",
            )
        boot = self._boot
        if isinstance(boot, DirectKernel):
            if not is_own:
                raise self._cannot_boot("a kernel without a boot loader")
            options += ["--kernel", boot.kernel, "--append", boot.command_line]
            return [*options, *(("--initrd", boot.initrd) if boot.initrd else ()), "none"]
        if boot.kernel is not None:
            raise self._cannot_boot("a kernel that UEFI is given")
        if not boot.uefi:
            if not is_own:
                raise self._cannot_boot("a disk by means of a BIOS")
            return [*options, "bios"]
        rom = boot.boot_rom or ((firmware := find_firmware()) and str(firmware.code))
        if not rom:
            raise CapabilityMissing(
                "there is no UEFI firmware on the host", hint="install the package ovmf, or give --propolis-boot-rom"
            )
        return [*options, rom]

    def _cannot_boot(self, what: str) -> CapabilityMissing:
        return CapabilityMissing(
            f"{self._program.path} boots from a boot ROM, and cannot boot {what}",
            hint="choose a guest with a boot loader on its disk, and VmConfig(firmware='uefi')",
        )

    async def _launch(self, arguments: list[str]) -> None:
        program, *prefix = *system().children.privileges, self._path
        with open_log(self.log_path) as log:
            self._log_start = log.tell()
            record = self._record = self._journal.intend()
            try:
                self._child = await spawn(
                    Path(program),
                    [*prefix, "run", *arguments, f"{LOOPBACK}:{self.port}"],
                    stdout=log,
                    stderr=log,
                    environment=record.environment,
                    directory=self._directories[0],
                )
            except OSError as error:
                raise cannot_be_run(self._program.path, error) from None
        record.live(self._child.pid)

    async def _answers(self, *, last: bool) -> bool:
        """Wait until the server answers.

        :param last: raise, where this returns False when the port was taken.
        """
        assert self._child is not None
        limit_s = self._program.start_timeout_s
        asking = asyncio.create_task(self._until_it_answers())
        ended = asyncio.ensure_future(self._child.wait())
        try:
            await asyncio.wait([asking, ended], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
                return True
            if not ended.done():
                raise self._did_not_start(f"has not answered for {limit_s:.0f} s")
            if "in use" in self._printed().lower() and not last:
                await self._child.end()
                self._child = None
                self._forget_record()
                return False
            raise self._did_not_start(f"ended with status {ended.result()} before it answered")
        finally:
            for task in (asking, ended):
                task.cancel()
            await asyncio.gather(asking, ended, return_exceptions=True)

    async def _until_it_answers(self) -> None:
        pause_s = FIRST_LOOK_S
        while True:
            try:
                async with self._client() as client:
                    await client.instance_get()
                return
            except ApiError as error:
                if error.request_id is None:
                    raise self._did_not_start(f"does not speak the Propolis API: {error.message}") from None
                return  # there is no VM yet
            except AgentError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_LOOK_S)

    def _forget_record(self) -> None:
        """Record that the process has ended, or was never started."""
        self._record.gone()
        self._record = NoJournal()

    def _did_not_start(self, why: str) -> HostError:
        printed = "\n".join(f"  | {line}" for line in self._printed().splitlines()[-LAST_LINES:])
        return HostError(f"{self._program.path} {why}" + (f"\n{printed}" if printed else ""))

    def _printed(self) -> str:
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
        return ""

    async def _stop_vm(self) -> None:
        """A server that is only killed may leave the VM to the host's kernel."""
        if self.pid is None or not self.port:
            return
        with contextlib.suppress(PropolisError, TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S), self._client() as client:
                await client.instance_state_put(InstanceStateRequested.STOP)
                generation = 0
                while (seen := await client.instance_state_monitor(generation)).state not in ENDS:
                    generation = seen.gen + 1

    async def _terminate(self) -> None:
        assert self._child is not None
        if self._child.returncode is not None:
            return
        self._child.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERMINATION_TIMEOUT_S):
                await self._child.wait()

    def _keep_core(self) -> None:
        """Keep a core dump beside the log, if that is the client's."""
        directory = self._directories[0]
        if self.log_path.is_relative_to(directory):
            return
        for core in directory.glob("core*"):
            with contextlib.suppress(OSError):
                shutil.move(core, self.log_path.with_suffix(".core"))

    def _client(self) -> PropolisClient:
        return PropolisClient(Endpoint(base_url=f"http://{LOOPBACK}:{self.port}"))


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """Reserve a TCP port for the length of the block, on which a server can listen.

    Servers set SO_REUSEADDR: two sockets that do may have one port until one of them listens.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind((LOOPBACK, 0))
        yield reservation.getsockname()[1]
