"""Commands run in the guest over the serial console or a guest port, one round trip each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Final

from ..errors import CommandFailed, CommandTimeout, ConsoleClosed, ShellError, ShellLost
from ..terminal_text import abbreviated
from .commands import CommandResult, PendingCommand, Sink, StallTimeout
from .console import Console
from .loop_client import LoopClient, either
from .read_eval_loop import hand_over_command, interactive_command
from .shell_protocol import TypedCommand, new_nonce
from .transports.console_transport import ConsoleTransport
from .transports.port_line import PortLine
from .transports.port_transport import PortTransport
from .transports.transport import LoopTransport

__all__ = ["Shell"]

COMMAND_CHARACTERS: Final = 400
"""How much of a command an error or the log shows."""
BEGIN_LIMIT_S: Final = 10.0
"""How long the mark of a command's beginning is awaited: it may have been lost."""
EXIT_TIMEOUT_S: Final = 2.0
EXIT_ATTEMPTS: Final = 10


class Shell:
    """A POSIX shell in the guest, kept in a quiet read-eval loop.

    Commands run one after the other, in the same shell: directory and variables stay from one to the next, until a
    command ends the shell (``exit``, ``exec``, a time-out); a fresh one takes its place.

    :param vm: the VM's name, for errors.
    :param port: the guest port that commands go over, beside the console, which has a shell of its own then: that one
        starts the shell of the port, and is there for interactive users.
    :param transport: the line to the loop, if there is no port; the console's by default.
    """

    def __init__(
        self, console: Console, *, vm: str, port: PortLine | None = None, transport: LoopTransport | None = None
    ) -> None:
        self._console = console
        self._terminal: Shell | None = None
        """The shell on the console, if commands go over a port."""
        self._transport: LoopTransport = transport or ConsoleTransport(console)
        if port is not None:
            self._terminal = Shell(console, vm=vm, transport=ConsoleTransport(console, starts_another=True))
            self._transport = PortTransport(port, console, self._terminal, vm=vm)
        self._loop = LoopClient(console, self._transport, vm=vm)
        self._lock = asyncio.Lock()
        self._interactive = False

    async def start(self, *, shell: str, timeout_s: float, wrapper: str = "{}") -> None:
        """Type the read-eval loop at the guest's prompt, and wait until it runs; then start that of the port, if any.

        :param wrapper: how the prompt's shell is to run the loop, ``{}`` standing for its command.
        :raises ShellLost: when it does not come up in time.
        :raises ShellError: when the guest has no such port.
        """
        session = None
        if self._terminal is not None:
            # It is seldom used: what it lacks is typed when it is, which takes an emulated guest a part of a second.
            await self._terminal._loop.start(shell=shell, timeout_s=timeout_s, wrapper=wrapper, prepare=False)
            session = self._terminal.session
        await self._loop.start(shell=shell, timeout_s=timeout_s, wrapper=wrapper, session=session)

    @property
    def log_path(self) -> Path:
        """The console's log, to which `note` writes."""
        return self._console.log_path

    def note(self, text: str) -> None:
        """Write a line of our own into the console's log, marked as such."""
        self._console.note(text)

    @property
    def is_up(self) -> bool:
        """Whether the read-eval loop runs in the guest."""
        return self._loop.is_up

    @property
    def session(self) -> str:
        """The word of the read-eval loop that runs, for `resume` in a fork of the guest. A port's is the console's."""
        return self._loop.session

    def resume(self, session: str, typed: TypedCommand | None = None, *, shell: str = "sh") -> None:
        """Take over a read-eval loop that waits for commands, in a guest that was forked.

        :param typed: what the agent has typed at it already: `run_typed` waits for it.
        :param shell: as for `start`.
        """
        if self._terminal is not None:
            self._terminal._loop.resume(session, shell=shell, prepared=False)
        self._loop.resume(session, typed, shell=shell)

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        check: bool = True,
        note: str | None = None,
        on_output: Sink | None = None,
        separate_stderr: bool = False,
    ) -> CommandResult:
        """Run a command, and wait until it ends. Its standard input is empty.

        :param separate_stderr: whether standard error comes apart from standard output.
        :param note: the text the log shows instead of the command itself.
        :param on_output: called with the output as it comes.
        :raises CommandFailed: when it ends with a status other than 0, and `check` is on.
        :raises CommandTimeout: when it does not end in time; it is interrupted then, and the shell stays usable.
        :raises ShellLost: when the shell does not answer any more.
        :raises ConsoleClosed: when the VM stops meanwhile.
        :raises ShellError: when the console is given to an interactive user, or the command contains a NUL.
        :raises CapabilityMissing: when standard error cannot be separated.
        """
        if self._interactive:
            raise self._loop.error(ShellError, "the console is in interactive use", hint="leave `interactive()` first")
        async with self._turn():
            await self._loop.recover()
            self._console.note(note or f"run: {abbreviated(command, COMMAND_CHARACTERS)}")
            pending = self._loop.begin(new_nonce())
            pending.on_output = on_output
            if separate_stderr:
                await self._separate_errors(pending)
            return await self._outcome(
                command, pending, self._loop.send(command, pending), timeout_s=timeout_s, check=check, note=note
            )

    async def run_first(self, command: str, *, timeout_s: float, note: str) -> CommandResult:
        """Run a command that may come before the shell's preparation, and so must leave the shell no child.

        Errors are those of `run`, but its status is not checked.

        :param note: the text the log shows for it.
        """
        async with self._turn():
            await self._loop.recover(prepare=False)
            self._console.note(note)
            pending = self._loop.begin(new_nonce())
            sending = self._loop.send(command, pending)
            return await self._outcome(command, pending, sending, timeout_s=timeout_s, check=False, note=note)

    async def run_typed(self, typed: TypedCommand, *, timeout_s: float, note: str) -> CommandResult:
        """Wait for the end of what the agent has typed, and was passed to `resume`; errors are those of `run`.

        :param note: the text the log shows for it.
        """
        async with self._turn():
            self._console.note(note)
            pending = self._loop.pending
            assert pending is not None
            assert pending.nonce == typed.nonce
            return await self._outcome(typed.text, pending, timeout_s=timeout_s, check=True, note=note)

    async def _outcome(
        self,
        command: str,
        pending: PendingCommand,
        sending: Awaitable[None] | None = None,
        *,
        timeout_s: float,
        check: bool,
        note: str | None,
    ) -> CommandResult:
        """Send a command, unless it is sent, and wait for its end."""
        try:
            async with asyncio.timeout(timeout_s):
                if sending is not None:
                    await sending
                status = (await self._loop.end_of(pending)).status
        except TimeoutError:
            await self._loop.recover()
            raise self._loop.error(
                CommandTimeout,
                f"{note or _named(command)} did not end; its output so far: {bytes(pending.output[-2000:])!r}",
                waited_s=timeout_s,
            ) from None
        self._loop.pending = None
        if check and status:
            message = f"{note or _named(command)} ended with status {status}"
            raise self._loop.error(CommandFailed, message, command=command, status=status, output=bytes(pending.output))
        errors = None if pending.errors_ended is None else bytes(pending.errors)
        return CommandResult(command=command, status=status, output=bytes(pending.output), errors=errors)

    async def _separate_errors(self, pending: PendingCommand) -> None:
        try:
            await self._loop.separate_errors(pending)
        except BaseException:
            self._loop.pending = None  # it was not sent
            raise

    async def run_detached(self, command: str) -> None:
        """Run a command that takes the shell with it, as a reboot does; does not wait for it."""
        async with self._turn():
            await self._loop.recover()
            self._console.note(f"run: {command}")
            self._console.ends.allow()
            await self._loop.send(command, self._loop.begin(new_nonce()))

    async def stream(
        self,
        command: str,
        nonce: str,
        *,
        sink: Sink,
        note: str,
        typed: AsyncIterator[bytes] | None = None,
        binary: bool = False,
        stall_s: float | None = None,
    ) -> int:
        """Run a command that reads the terminal or writes much to it, and return its status.

        :param nonce: the command's word, as of `new_nonce`.
        :param typed: what to type at the command: after each piece, it writes an acknowledgement with its nonce.
        :param sink: takes the output as it comes.
        :param binary: whether the output is kept out of the transcript and of the log.
        :param stall_s: how long nothing may come from the guest; None if the caller has a limit of its own.
        :param note: the text the log shows for it.
        :raises CommandTimeout: when nothing comes for so long; the command is interrupted, and the shell stays usable.
        """
        if self._interactive:
            raise self._loop.error(ShellError, "the console is in interactive use", hint="leave `interactive()` first")
        async with self._turn():
            await self._loop.recover()
            self._console.note(note)
            pending = self._loop.begin(nonce)
            try:
                async with asyncio.timeout(stall_s) as limit:
                    with self._transport.unrecorded() if binary else contextlib.nullcontext():
                        return await self._streamed(command, pending, typed, StallTimeout(limit, stall_s), sink)
            except TimeoutError:
                await self._loop.recover()
                raise self._loop.error(CommandTimeout, f"{note}: nothing moves any more", waited_s=stall_s) from None

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Run one command at a time. An error that a reset or the end of the guest causes acknowledges it."""
        with self._console.ends.acknowledged_by_errors():
            async with self._lock:
                yield

    async def _streamed(
        self, command: str, pending: PendingCommand, typed: AsyncIterator[bytes] | None, stall: StallTimeout, sink: Sink
    ) -> int:
        pending.sink = stall.watching(sink)
        await self._loop.send(command, pending)
        if typed is not None:
            # bash reads ahead: what is typed before the command reads the terminal would be the loop's.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_LIMIT_S):
                    await either(pending.began, pending.ended)
            async for piece in typed:
                pending.acknowledged.clear()
                await self._transport.send(piece)
                await either(pending.acknowledged, pending.ended)
                if pending.ended.done():
                    break
                stall.over()
        status = (await self._loop.end_of(pending)).status
        self._loop.pending = None
        return status

    @contextlib.asynccontextmanager
    async def interactive(self, *, timeout_s: float) -> AsyncIterator[Console]:
        """Give the console to the user's own shell, with echo, line editing, prompt and job control.

        At the end of the block the shell is sent `exit`, and its jobs end; unless the VM has stopped. Commands over a
        port go on meanwhile.

        :raises ShellLost: when the shell does not start or does not end.
        """
        if self._terminal is not None:
            async with self._terminal.interactive(timeout_s=timeout_s) as console:
                yield console
            return
        async with self._turn():
            await self._loop.recover()
            pending = self._loop.begin(new_nonce(interactive=True))
            self._console.transcript.skip()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._loop.send(interactive_command(), pending)
                    await either(pending.began, pending.ended)
            except TimeoutError:
                raise self._loop.error(ShellLost, "no interactive shell came up", waited_s=timeout_s) from None
            self._interactive = True
            try:
                yield self._console
            finally:
                self._interactive = False
                # A user who has switched the VM off has left.
                with contextlib.suppress(ConsoleClosed):
                    await self._leave(pending)

    async def release_console(self, *, timeout_s: float) -> None:
        """Leave the console to the user's own shell, for good: no more commands are run. Idempotent.

        A command that still runs is interrupted.

        :raises ShellLost: when that shell does not come up in time.
        :raises ConsoleClosed: when the VM has stopped.
        """
        if self._interactive:
            return
        try:
            async with asyncio.timeout(timeout_s), self._turn():
                await self._loop.recover()
                if self._terminal is not None:
                    await self._terminal.release_console(timeout_s=timeout_s)
                    self._interactive = True
                    return
                pending = self._loop.begin(new_nonce(interactive=True))
                await self._loop.send(hand_over_command(), pending)
                await either(pending.began, pending.ended)
        except TimeoutError:
            raise self._loop.error(ShellLost, "no shell for a person came up", waited_s=timeout_s) from None
        self._interactive = True

    async def _leave(self, pending: PendingCommand) -> None:
        """Have the interactive shell exit; one with stopped jobs needs a second `exit`."""
        for attempt in range(EXIT_ATTEMPTS):
            # Ctrl-C takes back what was typed half, and ends what runs. But a shell with stopped jobs lets go of them
            # only at the second of two `exit` with nothing in between.
            await self._console.send(b"exit\n" if attempt % 2 else b"\x03\nexit\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_TIMEOUT_S):
                    await asyncio.shield(pending.ended)
                    self._loop.pending = None
                    return
        raise self._loop.error(
            ShellLost, "the interactive shell does not exit", waited_s=EXIT_TIMEOUT_S * EXIT_ATTEMPTS
        )

    def abandon(self, reason: str) -> None:
        """End the wait for the command that runs, and take no further ones: the guest's shell is about to go."""
        if self._terminal is not None:
            self._terminal.abandon(reason)
        self._loop.abandon(reason)

    def on_failure(self, future: asyncio.Future[Any]) -> None:
        """Have a future fail with the line to the shell or with the VM, if it is not done by then."""
        self._transport.on_failure(future)

    def belongs_to(self, vm: str) -> None:
        """Name another VM in errors from now on: the one that the guest has migrated to."""
        if self._terminal is not None:
            self._terminal.belongs_to(vm)
        self._loop.belongs_to(vm)

    async def until_left(self, *, timeout_s: float) -> None:
        """Wait until a command that was run by `run_detached` has taken the shell with it, for so long at most.

        :raises CommandFailed: when it has failed instead.
        """
        pending = self._loop.pending
        assert pending is not None
        await asyncio.wait([pending.ended], timeout=timeout_s)
        if not pending.ended.done() or pending.ended.exception():
            return
        ended = pending.ended.result()
        if ended.status and ended.nonce is not None:
            message = f"it does not reboot: its command ended with status {ended.status}"
            raise self._loop.error(CommandFailed, message, status=ended.status, output=bytes(pending.output))


def _named(command: str) -> str:
    return repr(abbreviated(command, COMMAND_CHARACTERS))
