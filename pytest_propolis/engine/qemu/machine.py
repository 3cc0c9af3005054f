"""A running QEMU: its process, its monitor (QMP), its serial port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from qemu.qmp import EventListener, QMPError

from ...operating_system.child import Child, ChildRecord, Journal, spawn
from .bios_shadow import drop_bios_shadow
from .command_line import process_arguments, process_environment
from .guest_events import DiskError, GuestEvent, event_time_s, exit_reason
from .guest_ports import GuestPorts
from .monitor import COMMAND_TIMEOUT_S, MachineError, Monitor
from .qemu_log import QemuLog
from .serial_port import SerialPort

__all__ = ["Machine"]

logger = logging.getLogger(__name__)

MONITOR_READY_TIMEOUT_S: Final = 30.0

END_TIMEOUT_S: Final = 1.0
"""How long to wait for QEMU's exit after its monitor has disconnected."""


class Machine:
    """One QEMU process, stopped before its first instruction until `resume`.

    `panics` counts how often the guest has reported that it panicked. `stopped_s` and `resumed_s` are when QEMU last
    stopped the guest and let it run, by the host's clock in seconds since the epoch; 0 for never. `failure` is why it
    was given up.

    :param program: the QEMU system emulator.
    :param arguments: its arguments but for monitor and serial port, which are added here.
    :param log_path: receives what QEMU prints.
    :param journal: keeps account of the process.
    :param on_event: called in the event loop for each guest event.
    :param inherit: further file descriptors that QEMU inherits, under the same numbers. They stay the caller's.
    :param incoming: wait for another machine's state (`state_stream.load_state`), instead of a first instruction.
    :param guest_ports: whether the arguments have guest ports.
    """

    def __init__(
        self,
        *,
        program: Path,
        arguments: Sequence[str],
        log_path: Path,
        journal: Journal,
        on_event: Callable[[GuestEvent], None],
        inherit: Sequence[int] = (),
        incoming: bool = False,
        guest_ports: bool = False,
    ) -> None:
        self._program = program
        self._arguments = arguments
        self._log = QemuLog(log_path)
        self._on_event = on_event
        self._journal = journal
        self._inherit = inherit
        self._incoming = incoming
        self._record: ChildRecord | None = None
        self.serial = SerialPort()
        self.second_serial = SerialPort()
        """COM2, on which the guest talks to the agent."""
        self.serials = (self.serial, self.second_serial)
        self.ports = GuestPorts(there=guest_ports)
        self.panics = 0
        self.disk_error: DiskError | None = None
        """The first error of a disk that QEMU has stopped the guest for."""
        self.failure: str | None = None
        self.disk_error_handlers: list[Callable[[Mapping[str, Any]], bool]] = []
        """Each returns whether a block backend handles an error for which QEMU has stopped the guest."""
        self.stopped_s = 0.0
        self.resumed_s = 0.0
        self._monitor = Monitor(how_qemu_ended=self._how_it_ended)
        self._listener = EventListener(
            names={"SHUTDOWN", "RESET", "GUEST_PANICKED", "STOP", "RESUME", "BLOCK_IO_ERROR", "VSERPORT_CHANGE"}
        )
        self._process: Child | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._closing = False
        self._power = asyncio.Lock()
        self._shall_run = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_started(self) -> bool:
        """Whether `start` was called."""
        return self._process is not None

    async def start(self) -> None:
        """Run QEMU up to where its monitor answers.

        :raises MachineError: when QEMU ends instead, with what it printed, or cannot be run.
        :raises PropolisError: when the journal cannot record it.
        """
        record = self._record = self._journal.intend()
        monitor, qemu_monitor = socket.socketpair()
        fds = {"monitor": qemu_monitor.fileno(), "com1": self.serial.qemu_end.fileno()}
        fds["com2"] = self.second_serial.qemu_end.fileno()
        fds |= self.ports.fds
        try:
            with self._log.open() as log:
                self._process = await spawn(
                    self._program,
                    [*self._arguments, *process_arguments(fds, incoming=self._incoming)],
                    stdout=log,
                    stderr=log,
                    pass_fds=[*fds.values(), *self._inherit],
                    environment={**process_environment(os.environ), **record.environment},
                )
            record.live(self._process.pid)
        except OSError as error:
            monitor.close()
            raise MachineError(f"{self._program} cannot be run: {error.strerror or error}") from None
        except BaseException:
            monitor.close()
            await self.close()
            raise
        finally:
            qemu_monitor.close()
        self._monitor.register_listener(self._listener)
        try:
            async with asyncio.timeout(MONITOR_READY_TIMEOUT_S):
                await self._monitor.connect(monitor)
        except (QMPError, TimeoutError, OSError) as error:
            monitor.close()
            await self.close()
            raise MachineError(self._log.last_lines() or f"the QEMU monitor did not answer: {error}") from None
        self._watchers = [asyncio.create_task(self._watch_events()), asyncio.create_task(self._watch_process())]

    async def resume(self) -> None:
        """Resume the guest. One that has reset or shut itself down meanwhile stays as it is; an event reports that."""
        async with self._power:
            self._shall_run = True
            try:
                await self.execute("cont")
            except MachineError:
                if not await self._is_shut_down():
                    raise
        for port in self.serials:
            port.release()
        self.ports.release()

    async def pause(self) -> None:
        async with self._power:
            self._shall_run = False
            await self.execute("stop")

    async def retry_io(self) -> None:
        """Resume a guest that QEMU has stopped because a disk failed. QEMU tries its requests again first.

        :raises MachineError: when QEMU refuses.
        """
        async with self._power:
            if self._shall_run and (await self.execute("query-status"))["status"] == "io-error":
                await self.execute("cont")

    @contextlib.asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Stop a running guest for the length of the block, with all requests to its disks completed.

        :raises MachineError: when QEMU refuses.
        """
        async with self._power:
            runs = (await self.execute("query-status"))["status"] == "running"
            if runs:
                await self.execute("stop")
            try:
                yield
            finally:
                if runs and self._shall_run:
                    await self.execute("cont")

    def give_up(self, reason: str) -> None:
        """Report that the guest cannot continue, because a disk is lost."""
        self.failure = reason
        self._on_event(GuestEvent.DISK_LOST)

    def suspend(self) -> None:
        """Suspend QEMU's process until `unsuspend`: it answers nothing meanwhile. Its guest must be paused.

        That a guest is paused is not enough: QEMU's thread of the virtual CPUs may switch on again the virtual clock
        that the pause has switched off, and the main loop then spins on a timer that never expires.
        """
        self._signal(signal.SIGSTOP)

    def unsuspend(self) -> None:
        """Resume a suspended QEMU. No effect if it is not suspended."""
        self._signal(signal.SIGCONT)

    async def reset(self) -> None:
        """Reset the machine to its power-on state. The guest runs again if it did before."""
        async with self._power:
            await self._reset()

    async def send_fd(self, name: str, fd: int) -> None:
        """Hand QEMU a duplicate of a file descriptor, which later commands call `name`."""
        await self._monitor.send_fd(name, fd)

    async def close_fd(self, name: str) -> None:
        """Make QEMU close the descriptor of this name, unless a command has consumed it."""
        with contextlib.suppress(MachineError):
            await self.execute("closefd", fdname=name)

    def events(self, *names: str) -> contextlib.AbstractContextManager[EventListener]:
        """Subscribe to QEMU events of these names for the duration of the block."""
        return self._monitor.listener(names)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command of QEMU's monitor.

        :raises MachineError: when QEMU refuses it, is gone, or does not answer within `COMMAND_TIMEOUT_S`.
        """
        return await self._monitor.execute(command, arguments)

    async def execute_out_of_band(self, command: str, **arguments: Any) -> Any:
        """Execute a monitor command out of band: at once, even while another one hangs.

        :raises MachineError: as `execute`.
        """
        return await self._monitor.execute(command, arguments, oob=True)

    def log_to(self, path: Path) -> None:
        """Append QEMU's output to another log when QEMU has ended."""
        self._log.copy_to(path)

    async def next_event(self, listener: EventListener) -> tuple[str, dict[str, Any]]:
        """Return name and data of the next event for a listener of `events`.

        :raises MachineError: when QEMU ends instead.
        """
        assert self._process is not None
        event = asyncio.ensure_future(listener.get())
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait([event, ended], return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                raise MachineError(self._log.last_lines() or "QEMU ended")
            message = dict(event.result())
            return str(message["event"]), cast(dict[str, Any], message.get("data", {}))
        finally:
            event.cancel()
            ended.cancel()

    async def close(self) -> None:
        """Kill QEMU without involving the guest, and wait until it has exited. Idempotent."""
        self._closing = True
        for watcher in self._watchers:
            watcher.cancel()
        gone = self._process is None or await self._process.end()
        self._log.finish()
        if self._record is not None and gone:
            self._record.gone()
        elif not gone:
            logger.error("QEMU %s was killed, and has not ended: the ledger lists it still", self.pid)
        await self._monitor.disconnect()
        for port in self.serials:
            port.close()
        self.ports.close()

    async def _how_it_ended(self) -> str:
        """Describe how QEMU ended, with its last output; empty if it still runs a moment after its monitor closed."""
        if self._process is None:
            return ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):  # `wait_for` may swallow a cancellation
                status = await self._process.wait()
            return "\n".join(filter(None, [exit_reason(status), self._log.last_lines()]))
        return ""

    def _last_line(self) -> str:
        """Return the last line of QEMU's output without QEMU's name."""
        last = self._log.last_lines().rpartition("\n")[2]
        return last.removeprefix(f"{self._program.name}: ")

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.signal(number)

    async def _watch_events(self) -> None:
        number = 0
        async for event in self._listener:
            number += 1
            match event:
                case {"event": "GUEST_PANICKED"}:
                    self.panics += 1
                    self._on_event(GuestEvent.PANICKED)
                case {"event": "BLOCK_IO_ERROR", "data": data}:
                    self._take_disk_error(data)
                case {"event": "STOP"}:
                    self.stopped_s = event_time_s(event)
                case {"event": "RESUME"}:
                    self.resumed_s = event_time_s(event)
                case {"event": "RESET"}:
                    self.ports.opened.clear()
                case {"event": "VSERPORT_CHANGE", "data": {"open": True, "id": str(port)}}:
                    self.ports.opened.add(port)
                case {"event": "VSERPORT_CHANGE", "data": {"open": False, "id": str(port)}}:
                    await self._close_port(port, number)
                case {"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}:
                    await self._reset_for_the_guest(number)
                case {"event": "SHUTDOWN", "data": {"guest": True}}:
                    self._on_event(GuestEvent.SHUTDOWN)

    def _take_disk_error(self, data: Any) -> None:
        if data["action"] != "stop" or self.disk_error is not None:
            return  # the guest receives the error, and runs
        if any(handles(data) for handles in self.disk_error_handlers):
            return  # a block backend lets the guest try again
        self.disk_error = DiskError.of_event(data)
        self._on_event(GuestEvent.DISK_FAILED)

    async def _close_port(self, port: str, number: int) -> None:
        """Tell that the guest has closed a port, unless a reset has: its event may come before this one or after it.

        :param number: the number of events received before it.
        """
        async with self._power:  # which a reset has until its event is here
            is_reset = any(later["event"] == "RESET" for later in self._listener.history[number:])
            if port in self.ports.opened and not is_reset:
                self.ports.closed_by_guest(port)

    async def _reset_for_the_guest(self, number: int) -> None:
        """Perform a reset that the guest requested.

        :param number: the number of events received before it.
        """
        try:
            async with self._power:
                # QEMU's state does not show this: a guest that is stopped at this moment is paused, and not shut down.
                # Nor do the events' times: the host's clock may be set back.
                if any(later["event"] == "RESET" for later in self._listener.history[number:]):
                    return  # a reset from outside has come first
                await self._reset(by_guest=True)
        except MachineError as error:
            logger.warning("the guest's own reset is not carried out: %s", error)
            self._on_event(GuestEvent.EXITED)
        else:
            self._on_event(GuestEvent.RESET)

    async def _reset(self, *, by_guest: bool = False) -> None:
        # The guest is stopped meanwhile: it must not run between QEMU's reset and the remaining steps.
        await self.execute("stop")
        with self.events("RESET") as resets:
            await self.execute("set-action", reboot="reset")
            await self.execute("system_reset")
            await self._await_reset(resets)
        if by_guest:
            for port in self.serials:
                port.announce_reset()
        await self.execute("set-action", reboot="shutdown")
        await drop_bios_shadow(self.execute)
        if self._shall_run:
            await self._continue()

    async def _continue(self) -> None:
        try:
            await self.execute("cont")
        except MachineError:
            # QEMU has stopped it to save its state. The caller that requested that resumes it, here or elsewhere.
            if (await self.execute("query-status"))["status"] != "finish-migrate":
                raise

    async def _await_reset(self, resets: EventListener) -> None:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self.next_event(resets)
        except TimeoutError:
            raise MachineError(f"QEMU has not reset the machine for {COMMAND_TIMEOUT_S:.0f} s") from None

    async def _is_shut_down(self) -> bool:
        return bool((await self.execute("query-status"))["status"] == "shutdown")

    async def _watch_process(self) -> None:
        assert self._process is not None
        status = await self._process.wait()
        self._log.finish()
        if not self._closing:
            self.serial.end_reason = exit_reason(status, self._last_line())
            self.ports.close()
            self._on_event(GuestEvent.EXITED)
