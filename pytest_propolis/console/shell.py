"""Commands run in the guest over the serial console, one round trip each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import CommandFailed, CommandTimeout, ConsoleClosed, ShellError, ShellLost, abbreviated
from .console import Console
from .read_eval_loop import hand_over_command, interactive_command, preparation, program
from .shell_protocol import (
    INTERRUPT,
    Acknowledged,
    Began,
    Ended,
    Output,
    Ready,
    Signal,
    TypedCommand,
    encode,
    new_nonce,
    new_session,
    repeat_request,
)

__all__ = ["CommandResult", "Shell"]

Sink = Callable[[bytes], None]

COMMAND_CHARACTERS: Final = 400
"""How much of a command an error or the log shows."""
LOST_HINT: Final = "call `wait_to_boot` to log in again"
REPEAT_AFTER_S: Final = 2.0
INTERRUPT_TIMEOUT_S: Final = 10.0
INTERRUPT_INTERVAL_S: Final = 1.0
EXIT_TIMEOUT_S: Final = 2.0
EXIT_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended.

    :param status: its exit status; 128 plus the signal's number if a signal ended it.
    :param output: what it wrote to standard output and standard error, in the order of writing, to the byte.
    """

    command: str
    status: int
    output: bytes

    @property
    def text(self) -> str:
        """The output as text, without the newlines at its end."""
        return self.output.decode(errors="replace").rstrip("\n")


@dataclass(slots=True, eq=False)
class _Pending:
    """A command on its way."""

    nonce: str
    ended: asyncio.Future[Ended]
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)
    remaining: int = 0
    """The lines of the command that are still to come when the guest has read what was sent last."""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    output: bytearray = field(default_factory=bytearray)
    sink: Sink | None = None
    """Takes the output in place of `output`, as it comes."""

    on_output: Sink | None = None
    """Takes the output beside `output`."""

    def take(self, data: bytes) -> None:
        if self.sink is None:
            self.output += data
            if self.on_output is not None and self.began.is_set():
                self.on_output(data)
        elif self.began.is_set():
            self.sink(data)


@dataclass(slots=True, eq=False)
class _Stall:
    """A time-out that begins anew whenever something moves."""

    limit: asyncio.Timeout
    stall_s: float | None

    def over(self) -> None:
        if self.stall_s is None:
            return
        with contextlib.suppress(RuntimeError):  # it has expired already
            self.limit.reschedule(asyncio.get_running_loop().time() + self.stall_s)

    def watching(self, sink: Sink) -> Sink:
        def take(data: bytes) -> None:
            self.over()
            sink(data)

        return take


class Shell:
    """A POSIX shell in the guest, kept in a quiet read-eval loop on the serial line.

    Commands run one after the other, in the same shell: directory and variables stay from one to the next, until a
    command ends the shell (``exit``, ``exec``, a time-out); a fresh one takes its place.

    :param vm: the VM's name, for errors.
    """

    def __init__(self, console: Console, *, vm: str) -> None:
        self._console = console
        self._vm = vm
        self._lock = asyncio.Lock()
        self._session = ""
        self._command = "sh"
        """How the guest calls the shell that evaluates commands."""
        self._fresh = False
        """Whether a new shell evaluates commands, which has not had its `preparation`."""
        self._ready = asyncio.Event()
        self._pending: _Pending | None = None
        self._interactive = False
        self._lost: str | None = None
        """Why there is no read-eval loop any more."""
        console.on_signal = self._on_signal
        console.on_reset = self._on_reset

    async def start(self, *, shell: str, timeout_s: float, wrapper: str = "{}") -> None:
        """Type the read-eval loop at the guest's prompt, and wait until it runs.

        :param wrapper: how the prompt's shell is to run the loop, ``{}`` standing for its command.
        :raises ShellLost: when it does not come up in time.
        """
        self._ready.clear()
        self._lost = None
        self._pending = None
        self._session = new_session()
        self._command = shell
        failure = asyncio.get_running_loop().create_future()
        self._console.transcript.on_failure(failure)
        typed_at = self._console.transcript.end
        self._console.expect_nonces(self._session)
        await self._console.send(wrapper.replace("{}", program(self._session, shell=shell)) + "\n")
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask_until(self._ready, failure, self._session)
                await self._prepare()
        except TimeoutError:
            raise self._error(ShellLost, "the shell did not take the read-eval loop", waited_s=timeout_s) from None
        self._console.ends.watch()
        self._console.transcript.hide(typed_at)

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
        return self._ready.is_set()

    @property
    def session(self) -> str:
        """The word of the read-eval loop that runs, for `resume` in a fork of the guest."""
        return self._session

    def resume(self, session: str, typed: TypedCommand | None = None, *, shell: str = "sh") -> None:
        """Take over a read-eval loop that waits for commands, in a guest that was forked.

        :param typed: what the agent has typed at it already: `run_typed` waits for it.
        :param shell: as for `start`.
        """
        self._session = session
        self._command = shell
        self._console.expect_nonces(session)
        self._console.ends.watch()
        self._ready.set()
        if typed is not None:
            self._begin(typed.nonce)

    async def run(
        self,
        command: str,
        *,
        timeout_s: float,
        check: bool = True,
        note: str | None = None,
        on_output: Sink | None = None,
    ) -> CommandResult:
        """Run a command, and wait until it ends. Its standard input is empty.

        :param note: what the log says of it, instead of the command itself.
        :param on_output: called with the output as it comes.
        :raises CommandFailed: when it ends with a status other than 0, and `check` is on.
        :raises CommandTimeout: when it does not end in time; it is interrupted then, and the shell stays usable.
        :raises ShellLost: when the shell does not answer any more.
        :raises ConsoleClosed: when the VM stops meanwhile.
        :raises ShellError: when the console is given to an interactive user, or the command contains a NUL.
        """
        if self._interactive:
            raise self._error(ShellError, "the console is in interactive use", hint="leave `interactive()` first")
        async with self._turn():
            await self._recover()
            self._console.note(note or f"run: {abbreviated(command, COMMAND_CHARACTERS)}")
            pending = self._begin(new_nonce())
            pending.on_output = on_output
            return await self._outcome(
                command, pending, self._send(command, pending), timeout_s=timeout_s, check=check, note=note
            )

    async def run_typed(self, typed: TypedCommand, *, timeout_s: float, note: str) -> CommandResult:
        """Wait for the end of what the agent has typed, and `resume` was told of; errors are those of `run`.

        :param note: what the log says of it.
        """
        async with self._turn():
            self._console.note(note)
            pending = self._pending
            assert pending is not None
            assert pending.nonce == typed.nonce
            return await self._outcome(typed.text, pending, timeout_s=timeout_s, check=True, note=note)

    async def _outcome(
        self,
        command: str,
        pending: _Pending,
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
                status = (await self._end_of(pending)).status
        except TimeoutError:
            await self._recover()
            raise self._error(
                CommandTimeout,
                f"{note or _named(command)} did not end; its output so far: {bytes(pending.output[-2000:])!r}",
                waited_s=timeout_s,
            ) from None
        self._pending = None
        if check and status:
            message = f"{note or _named(command)} ended with status {status}"
            raise self._error(CommandFailed, message, command=command, status=status, output=bytes(pending.output))
        return CommandResult(command=command, status=status, output=bytes(pending.output))

    async def _end_of(self, pending: _Pending) -> Ended:
        """Wait for the end of a command; ask for it now and then, for the mark may have been lost."""
        interval_s = REPEAT_AFTER_S
        while not pending.ended.done():
            await asyncio.wait([pending.ended], timeout=interval_s)
            if not pending.ended.done():
                await self._console.send(repeat_request(pending.nonce))
            interval_s *= 2  # unread requests must not fill the guest's terminal
        return pending.ended.result()

    async def run_detached(self, command: str) -> None:
        """Run a command that takes the shell with it, as a reboot does; does not wait for it."""
        async with self._turn():
            await self._recover()
            self._console.note(f"run: {command}")
            self._console.ends.allow()
            await self._send(command, self._begin(new_nonce()))

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
        :param note: what the log says of it.
        :raises CommandTimeout: when nothing comes for so long; the command is interrupted, and the shell stays usable.
        """
        if self._interactive:
            raise self._error(ShellError, "the console is in interactive use", hint="leave `interactive()` first")
        async with self._turn():
            await self._recover()
            self._console.note(note)
            pending = self._begin(nonce)
            try:
                async with asyncio.timeout(stall_s) as limit:
                    with self._console.unrecorded() if binary else contextlib.nullcontext():
                        return await self._streamed(command, pending, typed, _Stall(limit, stall_s), sink)
            except TimeoutError:
                await self._recover()
                raise self._error(CommandTimeout, f"{note}: nothing moves any more", waited_s=stall_s) from None

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One command at a time. An error of the guest's end that leaves the block has told the test of it."""
        with self._console.ends.telling():
            async with self._lock:
                yield

    async def _streamed(
        self, command: str, pending: _Pending, typed: AsyncIterator[bytes] | None, stall: _Stall, sink: Sink
    ) -> int:
        pending.sink = stall.watching(sink)
        await self._send(command, pending)
        if typed is not None:
            async for piece in typed:
                pending.acknowledged.clear()
                await self._console.send(piece)
                await _either(pending.acknowledged, pending.ended)
                if pending.ended.done():
                    break
                stall.over()
        status = (await self._end_of(pending)).status
        self._pending = None
        return status

    @contextlib.asynccontextmanager
    async def interactive(self, *, timeout_s: float) -> AsyncIterator[Console]:
        """Give the console to the user's own shell, with echo, line editing, prompt and job control.

        On the way out the shell is told to exit, with its jobs; unless the VM has stopped.

        :raises ShellLost: when the shell does not start or does not end.
        """
        async with self._turn():
            await self._recover()
            pending = self._begin(new_nonce(interactive=True))
            self._console.transcript.skip()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._send(interactive_command(), pending)
                    await _either(pending.began, pending.ended)
            except TimeoutError:
                raise self._error(ShellLost, "no interactive shell came up", waited_s=timeout_s) from None
            self._interactive = True
            try:
                yield self._console
            finally:
                self._interactive = False
                # A user who has switched the VM off has left.
                with contextlib.suppress(ConsoleClosed):
                    await self._leave(pending)

    async def release_console(self, *, timeout_s: float) -> None:
        """Leave the console to the user's own shell, for good: commands are not run any more. Twice is fine.

        A command that still runs is interrupted.

        :raises ShellLost: when that shell does not come up in time.
        :raises ConsoleClosed: when the VM has stopped.
        """
        if self._interactive:
            return
        try:
            async with asyncio.timeout(timeout_s), self._turn():
                await self._recover()
                pending = self._begin(new_nonce(interactive=True))
                await self._send(hand_over_command(), pending)
                await _either(pending.began, pending.ended)
        except TimeoutError:
            raise self._error(ShellLost, "no shell for a person came up", waited_s=timeout_s) from None
        self._interactive = True

    async def _leave(self, pending: _Pending) -> None:
        """Have the interactive shell exit; one with stopped jobs wants to be told twice."""
        for attempt in range(EXIT_ATTEMPTS):
            # Ctrl-C takes back what was typed half, and ends what runs. But a shell with stopped jobs lets go of them
            # only if it is told twice with nothing in between.
            await self._console.send(b"exit\n" if attempt % 2 else b"\x03\nexit\n")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_TIMEOUT_S):
                    await asyncio.shield(pending.ended)
                    self._pending = None
                    return
        raise self._error(ShellLost, "the interactive shell does not exit", waited_s=EXIT_TIMEOUT_S * EXIT_ATTEMPTS)

    def _begin(self, nonce: str) -> _Pending:
        self._pending = _Pending(nonce, asyncio.get_running_loop().create_future())
        self._console.expect_nonces(self._session, nonce)
        self._console.transcript.on_failure(self._pending.ended)
        return self._pending

    async def _send(self, command: str, pending: _Pending) -> None:
        try:
            chunks = list(encode(command, pending.nonce))
        except ValueError as error:
            self._pending = None
            raise self._error(ShellError, str(error)) from None
        for chunk in chunks[:-1]:
            pending.acknowledged.clear()
            pending.remaining = chunk.remaining
            await self._console.send(chunk.data)
            await self._ask_until(pending.acknowledged, pending.ended, pending.nonce)
            if pending.ended.done():
                return
        await self._console.send(chunks[-1].data)

    async def _ask_until(self, event: asyncio.Event, failure: asyncio.Future[Any], nonce: str) -> None:
        """Wait for a mark; ask for it now and then, for it may have been lost."""
        interval_s = REPEAT_AFTER_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    return await _either(event, failure)
            await self._console.send(repeat_request(nonce))
            interval_s *= 2  # unread requests must not fill the guest's terminal

    async def _recover(self) -> None:
        """Interrupt a command that its caller stopped waiting for, so that the shell is free."""
        if self._lost:
            raise self._error(ShellLost, self._lost, hint=LOST_HINT)
        pending = self._pending
        if pending is not None and not pending.ended.done():
            try:
                async with asyncio.timeout(INTERRUPT_TIMEOUT_S):
                    await self._interrupt(pending)
                    await self._resynchronize()
            except TimeoutError:
                raise self._unanswered("the last command cannot be interrupted") from None
        self._pending = None
        if self._fresh:
            try:
                async with asyncio.timeout(INTERRUPT_TIMEOUT_S):
                    await self._prepare()
            except TimeoutError:
                raise self._unanswered("it has taken the place of one that ended") from None

    async def _prepare(self) -> None:
        """Tell a new shell what it is told first."""
        pending = self._begin(new_nonce())
        await self._send(preparation(self._session, pending.nonce, shell=self._command), pending)
        await self._end_of(pending)
        self._pending = None
        self._fresh = False

    async def _interrupt(self, pending: _Pending) -> None:
        """Interrupt until it helps: a shell that is just about to start a program misses one."""
        while not pending.ended.done():
            # The newline ends what may have been typed half.
            await self._console.send(INTERRUPT + b"\n")
            await asyncio.wait([pending.ended], timeout=INTERRUPT_INTERVAL_S)

    async def _resynchronize(self) -> None:
        """Get past the end of the shell itself, which an interrupt that came too late for its command has caused."""
        nonce = None
        while nonce is None:
            probe = self._begin(new_nonce())
            await self._send(":", probe)
            nonce = (await asyncio.shield(probe.ended)).nonce

    def _on_signal(self, signal: Signal) -> None:
        pending = self._pending
        match signal:
            case Ready():
                if pending is not None and pending.began.is_set() and not pending.ended.done():
                    self._fail(pending, "the guest's shells were killed: a new one has started")
                self._fresh = True
                self._ready.set()
            case Ended(nonce) if nonce == self._session:
                self._ready.set()  # the mark that it is ready was lost, and this answers the question for it
            case _ if pending is None:
                pass
            case Output(data):
                pending.take(data)
            case Acknowledged(remaining):
                if remaining == pending.remaining:
                    pending.acknowledged.set()
            case Began(nonce):
                if nonce == pending.nonce:
                    pending.output.clear()  # what came before belongs to others, unless this mark is lost
                    pending.began.set()
            case Ended(nonce):
                self._fresh = self._fresh or nonce is None
                if nonce in (None, pending.nonce) and not pending.ended.done():
                    pending.ended.set_result(signal)

    def _on_reset(self) -> None:
        if not self._ready.is_set():
            return
        self._lost = "the guest has reset itself, and its shell is gone"
        self._ready.clear()
        self.abandon(self._lost)

    def _fail(self, pending: _Pending, reason: str, **context: Any) -> None:
        pending.ended.set_exception(self._error(ShellLost, reason, **context))
        pending.ended.exception()  # it may be awaited no more
        pending.acknowledged.set()

    def abandon(self, reason: str) -> None:
        """End the wait for the command that runs, and take no further ones: the guest's shell is about to go."""
        self._lost = self._lost or reason
        if self._pending is not None and not self._pending.ended.done():
            self._fail(self._pending, reason, hint=LOST_HINT)

    def belongs_to(self, vm: str) -> None:
        """Name another VM in errors from now on: the one that the guest has migrated to."""
        self._vm = vm

    async def until_left(self, *, timeout_s: float) -> None:
        """Wait until a command that was run by `run_detached` has taken the shell with it, for so long at most.

        :raises CommandFailed: when it has failed instead.
        """
        pending = self._pending
        assert pending is not None
        await asyncio.wait([pending.ended], timeout=timeout_s)
        if not pending.ended.done() or pending.ended.exception():
            return
        ended = pending.ended.result()
        if ended.status and ended.nonce is not None:
            message = f"it does not reboot: its command ended with status {ended.status}"
            raise self._error(CommandFailed, message, status=ended.status, output=bytes(pending.output))

    def _unanswered(self, why: str) -> ShellError:
        return self._error(
            ShellLost,
            f"the shell does not answer: {why}",
            waited_s=INTERRUPT_TIMEOUT_S,
            hint="reset the VM, or see its console",
        )

    def _error(self, kind: type[ShellError], message: str, **context: Any) -> ShellError:
        context.setdefault("console_tail", self._console.tail())
        return kind(message, vm=self._vm, log_path=str(self._console.log_path), **context)


def _named(command: str) -> str:
    return repr(abbreviated(command, COMMAND_CHARACTERS))


async def _either(event: asyncio.Event, failure: asyncio.Future[Any]) -> None:
    """Wait for an event; a future that fails first raises what it failed with."""
    happening = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([happening, failure], return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()
    if not event.is_set():
        failure.result()
