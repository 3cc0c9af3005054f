"""The client of the read-eval loop in a guest: starts the loop, sends commands, and recognises their ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from ..errors import ShellError, ShellLost
from .commands import PendingCommand
from .console import Console
from .shell_protocol import (
    Acknowledged,
    Began,
    Chunk,
    Ended,
    Output,
    Ready,
    Signal,
    TypedCommand,
    new_nonce,
    new_session,
    repeat_request,
)
from .transports.transport import LoopTransport

__all__ = ["LoopClient", "either"]

LOST_HINT: Final = "call `wait_to_boot` to log in again"
REPEAT_AFTER_S: Final = 2.0
KILLED: Final = "the guest's shells were killed"
LOGGED_OUT: Final = "the guest shows a login prompt where its shell was"
LOGIN_PROMPT: Final = b" login: "
ECHO_BYTES: Final = 100
INTERRUPT_TIMEOUT_S: Final = 10.0
PREPARATION_TIMEOUT_S: Final = 30.0
RESTART_TIMEOUT_S: Final = 60.0
INTERRUPT_INTERVAL_S: Final = 1.0
PREPARATIONS: Final = 3


class LoopClient:
    """Drives the read-eval loop of one guest; one command at a time.

    :param console: the VM's console, for the log and for errors.
    :param transport: the line to the loop.
    :param vm: the VM's name, for errors.
    """

    def __init__(self, console: Console, transport: LoopTransport, *, vm: str) -> None:
        self._console = console
        self._transport = transport
        self._vm = vm
        self._session = ""
        self._command = "sh"
        """How the guest calls the shell that evaluates commands."""
        self._fresh = False
        """Whether a new shell evaluates commands, which has not had its `preparation`."""
        self._ready = asyncio.Event()
        self._replaced = asyncio.Event()
        """Set when a loop is ready that replaces another one."""
        self.pending: PendingCommand | None = None
        """The command that was sent last; None once its caller has its end."""
        self._lost: str | None = None
        """Why there is no read-eval loop any more."""
        self._closed = False
        """Whether the loop has ended in a guest that runs on."""
        transport.attach(on_signal=self._on_signal, on_reset=self._on_reset, on_closed=self._on_closed)

    @property
    def is_up(self) -> bool:
        """Whether the read-eval loop runs in the guest."""
        return self._ready.is_set()

    @property
    def session(self) -> str:
        """The word of the read-eval loop that runs, for `resume` in a fork of the guest."""
        return self._session

    async def start(
        self, *, shell: str, timeout_s: float, wrapper: str = "{}", session: str | None = None, prepare: bool = True
    ) -> None:
        """Start the read-eval loop in the guest, and wait until it runs.

        :param wrapper: how the prompt's shell is to run the loop, ``{}`` standing for its command.
        :param session: the word of the loop; a new one by default.
        :param prepare: whether the shell gets its `preparation`. Otherwise `recover` sends that.
        :raises ShellLost: when it does not come up in time.
        :raises ShellError: when the guest lacks what the line to it needs.
        """
        self._ready.clear()
        self._lost = None
        self._closed = False
        self.pending = None
        self._session = session or new_session()
        self._command = shell
        failure = asyncio.get_running_loop().create_future()
        self._transport.on_failure(failure)
        typed_at = self._console.transcript.end
        self._transport.expect_nonces(self._session)
        self._transport.listen()
        try:
            async with asyncio.timeout(timeout_s):
                await self._transport.launch(self._session, shell=shell, wrapper=wrapper)
                if not self._transport.waits_for_client:
                    await self._ask_until(self._ready, failure, self._session)
                self._fresh = True
                if prepare:
                    await self._prepare()
        except TimeoutError:
            raise self.error(ShellLost, "the shell did not take the read-eval loop", waited_s=timeout_s) from None
        self._console.ends.watch()
        self._console.transcript.hide(typed_at)

    def resume(
        self, session: str, typed: TypedCommand | None = None, *, shell: str = "sh", prepared: bool = True
    ) -> None:
        """Take over a read-eval loop that waits for commands, in a guest that was forked.

        :param typed: what the agent has typed at it already: `run_typed` waits for it.
        :param shell: as for `start`.
        :param prepared: whether the shell has had its `preparation`.
        """
        self._fresh = not prepared
        self._session = session
        self._command = shell
        self._transport.expect_nonces(session)
        self._console.ends.watch()
        self._ready.set()
        if typed is not None:
            self.begin(typed.nonce)
        self._transport.listen()  # the answer to what was typed may be there already

    def begin(self, nonce: str) -> PendingCommand:
        """Expect the marks of a command that is about to be sent."""
        self.pending = PendingCommand(nonce, asyncio.get_running_loop().create_future())
        self._transport.expect_nonces(self._session, nonce)
        self._transport.on_failure(self.pending.ended)
        return self.pending

    async def separate_errors(self, pending: PendingCommand) -> None:
        """Have the standard error of a command that is about to be sent come apart.

        :raises CapabilityMissing: when the line to the loop cannot.
        """
        await self._transport.open_errors(self._on_error_signal)
        pending.errors_ended = asyncio.get_running_loop().create_future()
        self._transport.on_failure(pending.errors_ended)

    async def send(self, command: str, pending: PendingCommand) -> None:
        """Send a command that `begin` expects, and return when the guest can read all of it.

        :raises ShellError: when the command contains a NUL.
        """
        try:
            apart = pending.errors_ended is not None
            chunks = list(self._transport.encode(command, pending.nonce, self._session, errors_apart=apart))
        except ValueError as error:
            self.pending = None
            raise self.error(ShellError, str(error)) from None
        await self._send(chunks, pending)

    async def _send(self, chunks: Sequence[Chunk], pending: PendingCommand) -> None:
        for chunk in chunks[:-1]:
            pending.acknowledged.clear()
            pending.remaining = chunk.remaining
            await self._transport.send(chunk.data)
            await self._ask_until(pending.acknowledged, pending.ended, pending.nonce)
            if pending.ended.done():
                return
        await self._transport.send(chunks[-1].data)

    async def end_of(self, pending: PendingCommand) -> Ended:
        """Wait for the end of a command; ask for it now and then, for the mark may have been lost."""
        interval_s = REPEAT_AFTER_S if self._transport.may_lose_marks else None
        while not pending.ended.done():
            await asyncio.wait([pending.ended], timeout=interval_s)
            if interval_s is None or pending.ended.done():
                continue
            await self._transport.send(repeat_request(pending.nonce))
            interval_s *= 2  # unread requests must not fill the guest's terminal
        if self._lost == LOGGED_OUT:
            self._console.transcript.skip()
            await self._transport.send(b"\n")  # in the place of a password: another login prompt follows
        if pending.errors_ended is not None and not pending.ended.exception():
            await asyncio.wait([pending.errors_ended])
            pending.errors_ended.result()
        return pending.ended.result()

    async def recover(self, *, prepare: bool = True) -> None:
        """Interrupt a command that its caller stopped waiting for, so that the shell is free.

        :param prepare: whether a shell that has not had its `preparation` gets it.
        """
        if self._lost:
            raise self.error(ShellLost, self._lost, hint=LOST_HINT)
        if not self._session:
            raise self.error(ShellError, "the guest takes no commands yet", hint="call `boot` or `wait_to_boot` first")
        if self._closed:
            await self.start(shell=self._command, timeout_s=RESTART_TIMEOUT_S, session=self._session)
            return
        pending = self.pending
        if pending is not None and not pending.ended.done():
            try:
                async with asyncio.timeout(INTERRUPT_TIMEOUT_S):
                    await self._interrupt(pending)
                    await self._resynchronize()
            except TimeoutError:
                why = "the last command cannot be interrupted"
                raise self._unanswered(why, waited_s=INTERRUPT_TIMEOUT_S) from None
        self.pending = None
        if self._fresh and prepare:
            try:
                async with asyncio.timeout(PREPARATION_TIMEOUT_S):
                    await self._prepare()
            except TimeoutError:
                why = "it does not take its first settings"
                raise self._unanswered(why, waited_s=PREPARATION_TIMEOUT_S) from None

    def abandon(self, reason: str) -> None:
        """End the wait for the command that runs, and take no further ones: the guest's shell is about to go."""
        self._lost = self._lost or reason
        if self.pending is not None and not self.pending.ended.done():
            self._fail(self.pending, reason, hint=LOST_HINT)

    def belongs_to(self, vm: str) -> None:
        """Name another VM in errors from now on: the one that the guest has migrated to."""
        self._vm = vm

    def error(self, kind: type[ShellError], message: str, **context: Any) -> ShellError:
        """Return an error that names the VM and has the last lines of its console."""
        context.setdefault("console_tail", self._console.tail())
        return kind(message, vm=self._vm, log_path=str(self._console.log_path), **context)

    async def _ask_until(self, event: asyncio.Event, failure: asyncio.Future[Any], nonce: str) -> None:
        """Wait for a mark; ask for it now and then, for it may have been lost."""
        if not self._transport.may_lose_marks:
            return await either(event, failure)
        interval_s = REPEAT_AFTER_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    return await either(event, failure)
            await self._transport.send(repeat_request(nonce))
            interval_s *= 2  # unread requests must not fill the guest's terminal

    async def _prepare(self) -> None:
        """Send a new shell its first settings."""
        replacement = self._transport.replacement(self._session, shell=self._command)
        if replacement is not None:
            self.pending = None
            self._replaced.clear()
            failure = asyncio.get_running_loop().create_future()
            self._transport.on_failure(failure)
            await self._transport.send(replacement)
            await self._ask_until(self._replaced, failure, self._session)
        for _ in range(PREPARATIONS):
            pending = self.begin(new_nonce())
            first = self._transport.preparation(self._session, pending.nonce, shell=self._command)
            await self._send(list(first), pending)
            if (await self.end_of(pending)).nonce is not None:
                break  # and not by an interrupt of what came before
        self.pending = None
        self._fresh = False

    async def _interrupt(self, pending: PendingCommand) -> None:
        """Interrupt until it helps: a shell that is just about to start a program misses one."""
        while not pending.ended.done():
            await self._transport.interrupt()
            await asyncio.wait([pending.ended], timeout=INTERRUPT_INTERVAL_S)

    async def _resynchronize(self) -> None:
        """Get past the end of the shell itself, which an interrupt that came too late for its command has caused."""
        nonce = None
        while nonce is None:
            if self._fresh and self._transport.waits_for_client:
                return
            probe = self.begin(new_nonce())
            await self.send(":", probe)
            await asyncio.wait([probe.ended])
            nonce = probe.ended.result().nonce

    def _on_signal(self, signal: Signal) -> None:
        pending = self.pending
        match signal:
            case Ready():
                if pending is not None and pending.began.is_set() and not pending.ended.done():
                    self._fail(pending, f"{KILLED}: a new one has started")
                self._fresh = True
                self._ready.set()
                self._replaced.set()
            case Ended(nonce) if nonce == self._session:
                self._ready.set()  # the mark that it is ready was lost, and this answers the question for it
                self._replaced.set()
            case _ if pending is None:
                pass
            case Output(data):
                pending.take(data)
                self._look_for_login(pending)
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

    def _look_for_login(self, pending: PendingCommand) -> None:
        """Fail a command if the guest's login prompt shows what was sent for it: its shell would not."""
        shown, sent, _ = pending.output[-ECHO_BYTES:].rpartition(pending.nonce.encode())
        if sent and shown.removesuffix(b"?").endswith(LOGIN_PROMPT) and not pending.ended.done():
            self._ready.clear()
            self._lost = LOGGED_OUT
            self._fail(pending, LOGGED_OUT, hint=LOST_HINT)

    def _on_error_signal(self, signal: Signal) -> None:
        """Take what comes on the way of standard error alone, behind the mark that this command has begun."""
        pending = self.pending
        if pending is None or pending.errors_ended is None:
            return
        match signal:
            case Began(nonce) if nonce == pending.nonce:
                pending.errors_began = True
            case Output(data) if pending.errors_began:
                pending.errors += data
            case Ended(nonce) if pending.errors_began and nonce in (None, pending.nonce):
                if not pending.errors_ended.done():
                    pending.errors_ended.set_result(None)

    def _on_closed(self) -> None:
        if not self._ready.is_set():
            return  # the guest has reset its machine
        self._closed = True
        if self.pending is not None and not self.pending.ended.done():
            self._fail(self.pending, KILLED, hint="the next command starts a new one")

    def _on_reset(self) -> None:
        if not self._ready.is_set():
            return
        self._lost = "the guest has reset itself, and its shell is gone"
        self._ready.clear()
        self.abandon(self._lost)

    def _fail(self, pending: PendingCommand, reason: str, **context: Any) -> None:
        if pending.errors_ended is not None:
            pending.errors_ended.cancel()
        pending.ended.set_exception(self.error(ShellLost, reason, **context))
        pending.ended.exception()  # it may be awaited no more
        pending.acknowledged.set()

    def _unanswered(self, why: str, *, waited_s: float) -> ShellError:
        return self.error(
            ShellLost,
            f"the shell does not answer: {why}",
            waited_s=waited_s,
            hint="reset the VM, or see its console",
        )


async def either(event: asyncio.Event, failure: asyncio.Future[Any]) -> None:
    """Wait for an event; a future that fails first raises what it failed with."""
    happening = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([happening, failure], return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()
    if not event.is_set():
        failure.result()
