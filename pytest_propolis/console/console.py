"""The client of a VM's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from ..errors import AgentError, ConsoleClosed, ConsoleTimeout, GuestPanicked, GuestWasReset, PropolisError
from ..propolis_api.connection.endpoint import Loss
from ..propolis_api.serial import SerialConsoleMoved, is_reset_notice, migration_notice
from ..terminal_text import abbreviated
from .escapes import TextFilter
from .following import MOVED, ExpectedMove, Follow, Sent
from .kernel.ends import asks_for_an_end
from .kernel.failures import KernelFailures
from .log import ConsoleLog
from .shell_protocol import FrameParser, Output, Signal
from .transcript import Found, Transcript

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["TAIL_LINES", "Console", "end_reason"]

PANIC: Final = re.compile(r"---\[ end (Kernel panic.*?) \]---")
"""The last line of a Linux that has panicked, and will not boot again by itself."""

PANIC_BYTES: Final = 1000
_LAST_LINE_OF_PANIC: Final = re.compile(rb"---\[ end (Kernel panic[^\n]*?) \]---\r\n\Z")
"""The kernel writes carriage returns of its own. Commands, whose terminal is raw, write them with old logs only."""

PANIC_QUIET_S: Final = 1.0
"""For so long after that line, nothing comes from a guest that has panicked. Other guests only show an old log."""

RESET: Final = "the guest has reset its machine"
TAIL_LINES: Final = 30
"""How many lines of console an error shows."""

PATTERN_CHARACTERS: Final = 400


class Console:
    """The serial console of one VM.

    What the guest shows goes to `transcript` as plain text, to the log file at once (also lines that are not finished),
    and, as signals of the shell protocol, to `on_signal`.

    :param vm: the VM's name, for errors.
    :param log_path: the log file; its directory must exist. What is there already is kept.
    :param follow: how to go with a guest that migrates; without it, the console closes then.
    :param loss: returns why the VM's host is lost.
    :param failures: gets to know what goes wrong in the guest's kernel.
    :raises HostError: when the log file cannot be had.
    """

    def __init__(
        self,
        connection: ClientConnection,
        *,
        vm: str,
        log_path: Path,
        follow: Follow | None = None,
        loss: Loss | None = None,
        failures: KernelFailures | None = None,
    ) -> None:
        self._connection = connection
        self._failures = failures or KernelFailures(vm)
        self._follow = follow
        self._moving = False
        self._expected: ExpectedMove | None = None
        self._offset = 0
        """Up to where the guest's output was received."""
        self._sent = Sent()
        self._next: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether another connection follows this one; known when it does, or when the console is at its end."""
        self._vm = vm
        self.transcript = Transcript()
        self.on_signal: Callable[[Signal], None] | None = None
        """Called for each signal of the shell protocol that has one of the words given to `expect_nonces`."""
        self.on_reset: Callable[[], None] | None = None
        """Called when the guest has reset its machine, if the server reports it."""
        self._loss = loss
        self._lost: AgentError | None = None
        self._not_followed: str | None = None
        """Why the console could not follow its guest."""
        self._parser = FrameParser()
        self._filter = TextFilter()
        self._recorded = True
        self.log = ConsoleLog(log_path)
        self._loop = asyncio.get_running_loop()
        self.ends = self._failures.ends
        self._recent = b""
        self.boot_start = 0
        """Where in the transcript the guest's last reset was, if one is known."""
        self._reset: asyncio.Future[None] = self._loop.create_future()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def over(
        cls,
        connection: ClientConnection,
        *,
        vm: str,
        log_path: Path,
        follow: Follow | None = None,
        loss: Loss | None = None,
        failures: KernelFailures | None = None,
    ) -> AsyncIterator[Console]:
        """A console over an open websocket, which it closes."""
        console = cls(connection, vm=vm, log_path=log_path, follow=follow, loss=loss, failures=failures)
        try:
            yield console
        finally:
            await console.aclose()

    async def send(self, data: str | bytes) -> None:
        """Type something: exactly this, without a newline at its end.

        What is typed in the moment when a guest moves to another host reaches it there, after what was typed before.
        Under propolis-server, which does not report what it has taken, it may be lost.

        :raises ConsoleClosed: when the VM is gone.
        """
        typed = data.encode() if isinstance(data, str) else data
        if asks_for_an_end(typed):
            self.ends.allow()
        while True:
            following = self._next
            if not self._moving and await self._send(typed):
                return
            await asyncio.wait([following])
            if not following.result():
                self.ends.acknowledge()
                raise self._closed()

    def moves(self) -> asyncio.Future[bool]:
        """Done when the console is at the next host that its guest moves to: true. Or when it has closed: false."""
        return self._next

    def expect(self, move: ExpectedMove) -> None:
        """Follow the guest if it has been handed over and the server is lost before it says so."""
        self._expected = move

    def next_reset(self) -> asyncio.Future[None]:
        """Return a future that is done when the guest next resets its machine, if the server reports it."""
        return self._reset

    async def wait_for(self, pattern: str | re.Pattern[str], *, timeout_s: float) -> Found:
        """Wait until a text, or a match of a regular expression, is shown.

        Text that came after the last match counts too. Any number of waits may be under way at once.

        :raises ConsoleTimeout: when it does not come in time.
        :raises ConsoleClosed: when the VM stops before.
        :raises GuestPanicked: when the guest's kernel panics before.
        :raises GuestWasReset: when the guest resets its machine before, and nothing has requested or expects that.
        """
        try:
            with self.ends.acknowledged_by_errors():
                async with asyncio.timeout(timeout_s):
                    return await self.transcript.wait_for(pattern)
        except TimeoutError:
            raise ConsoleTimeout(
                f"{_named(pattern)} did not appear on the console",
                vm=self._vm,
                waited_s=timeout_s,
                console_tail=self.tail(),
                log_path=str(self.log.path),
            ) from None

    def boots_again(self) -> None:
        """Take note that the guest is reset: what it shows from here on belongs to another boot."""
        # A mark or an escape sequence that has begun does not continue after a reset.
        self._show(self._parser.restart())
        self._record(self._filter.finish())
        self._failures.settle()
        self._recent = b""
        self.boot_start = self.transcript.end

    def expect_nonces(self, *words: str) -> None:
        """Take those signals of the shell protocol for signals that carry one of these words, and no others."""
        self._parser.words = words

    @property
    def log_path(self) -> Path:
        return self.log.path

    @property
    def vm(self) -> str:
        """The VM's name, for errors."""
        return self._vm

    def belongs_to(self, vm: str, *, follow: Follow | None = None, loss: Loss | None = None) -> None:
        """Name another VM in errors from now on: the one that the guest has migrated to.

        :param follow: how to go on with the guest when it migrates again.
        :param loss: returns why the VM's host is lost.
        """
        self._vm, self._follow, self._loss = vm, follow or self._follow, loss

    def tail(self) -> tuple[str, ...]:
        """Return the last lines shown."""
        return self.transcript.tail(TAIL_LINES)

    def note(self, text: str) -> None:
        """Write a line of our own into the log file, marked as such."""
        self.log.write(f"[propolis] {text}\n")

    def show_output(self, text: str) -> None:
        """Have the log and the tail contain what a command has written to another line than the console."""
        self.log.write(text)
        self.transcript.append_other(text)

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Keep what comes meanwhile out of the transcript and the log: it is binary, and for `on_signal` alone."""
        self._recorded = False
        try:
            yield
        finally:
            self._recorded = True

    async def aclose(self) -> None:
        """Stop following the console. Idempotent."""
        await self._connection.close()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self.log.close()

    async def _read(self) -> None:
        try:
            while moved := await self._read_connection() or await self._unreported_move():
                await self._go_with(moved)
            if self._loss and self._connection.close_code == CloseCode.ABNORMAL_CLOSURE:
                self._lost = await self._loss()
        except PropolisError as error:
            self._not_followed = f"the guest has migrated, and its console cannot be followed: {error}"
            self.note(self._not_followed)
        except Exception as error:
            self.transcript.fail(self._closed(f"it could not be read: {error!r}"))
            raise
        finally:
            self._next.set_result(False)
            self._failures.settle()
            if self._has_stopped():
                self.ends.record("exit", end_reason(self._connection), self.transcript)
            self.transcript.fail(self._closed())

    async def _read_connection(self) -> SerialConsoleMoved | None:
        """Read to the end of a connection; return where the console goes on, if it does."""
        with contextlib.suppress(ConnectionClosed):
            async for message in self._connection:
                if isinstance(message, bytes):
                    self._offset += len(message)
                    self._feed(message)
                elif is_reset_notice(message):
                    self.note(RESET)
                    self.boots_again()
                    if self.ends.record("reset", RESET, self.transcript):
                        self.transcript.end_waits(self._was_reset())
                    resets, self._reset = self._reset, self._loop.create_future()
                    resets.set_result(None)
                    if self.on_reset is not None:
                        self.on_reset()
                elif moved := migration_notice(message):
                    if self._follow:
                        return moved
                    self._not_followed = MOVED
        return None

    async def _unreported_move(self) -> SerialConsoleMoved | None:
        is_lost = self._connection.close_code == CloseCode.ABNORMAL_CLOSURE
        return await self._expected.outcome(self._offset) if self._follow and self._expected and is_lost else None

    async def _go_with(self, moved: SerialConsoleMoved) -> None:
        assert self._follow is not None
        self._moving, self._expected, self._offset = True, None, moved.from_start
        before, self._connection = self._connection, await self._follow(moved)
        await before.close()
        await self._send_again(moved)
        self._moving = False
        followed, self._next = self._next, asyncio.get_running_loop().create_future()
        followed.set_result(True)

    async def _send(self, typed: bytes) -> bool:
        """Return whether the guest gets it, here or where it moves meanwhile."""
        following, sent = self._next, self._sent
        sent.append(typed)
        try:
            await self._connection.send(typed)
        except ConnectionClosed:
            await asyncio.wait([following])
            return sent.is_sent_on
        return True

    async def _send_again(self, moved: SerialConsoleMoved) -> None:
        """Type what was sent to the guest's last host and came too late there."""
        sent, self._sent = self._sent, Sent()
        if moved.typed is None:
            return
        sent.is_sent_on = True
        late, forgotten = sent.beyond(moved.typed)
        if forgotten:
            self.note(f"{forgotten} bytes that were typed while the guest migrated are lost")
        if late:
            self._sent.append(late)
            with contextlib.suppress(ConnectionClosed):  # it has migrated again: the next connection gets them, too
                await self._connection.send(late)

    def _feed(self, data: bytes) -> None:
        self._show(self._parser.feed(data))

    def _show(self, signals: Iterable[Signal]) -> None:
        for signal in signals:
            if isinstance(signal, Output):
                if self._recorded:
                    self._record(self._filter.feed(signal.data))
                self._failures.feed(signal.data, self.transcript)
                self._look_for_panic(signal.data)
            else:
                # The output of one command does not continue a sequence that another has left unfinished.
                self._record(self._filter.finish())
            if self.on_signal is not None:
                self.on_signal(signal)

    def _record(self, text: str) -> None:
        self.log.write(text)
        self.transcript.append(text)

    def _look_for_panic(self, data: bytes) -> None:
        self._recent = (self._recent + data)[-PANIC_BYTES:]
        if panic := _LAST_LINE_OF_PANIC.search(self._recent):
            reason = panic[1].decode(errors="replace")
            self._failures.last_line(reason, self.transcript)
            self._loop.call_later(PANIC_QUIET_S, self._panicked, reason, self.transcript.end)

    def _panicked(self, reason: str, end: int) -> None:
        """Take the last line for a panic if nothing has followed it, and no reset."""
        if self.transcript.end > end or self.boot_start == end:
            return
        self._failures.settle()
        self.transcript.interrupt(
            GuestPanicked(
                f"the guest panicked: {reason}",
                vm=self._vm,
                console_tail=self.tail(),
                log_path=str(self.log.path),
                hint="reset or stop the VM",
            )
        )

    def _has_stopped(self) -> bool:
        """Return whether the server has said that the VM stopped."""
        return self._connection.close_code == CloseCode.GOING_AWAY and bool(self._connection.close_reason)

    def _was_reset(self) -> GuestWasReset:
        return GuestWasReset(
            f"{RESET}, which the test has not requested",
            vm=self._vm,
            console_tail=self.tail(),
            log_path=str(self.log.path),
            hint="a reset that the test causes belongs in `expect_reset`; afterwards, `wait_to_boot`",
        )

    def _closed(self, reason: str | None = None) -> PropolisError:
        if self._lost is not None:
            return self._lost.with_context(vm=self._vm, console_tail=self.tail(), log_path=str(self.log.path))
        return ConsoleClosed(
            f"the console closed: {reason or self._not_followed or end_reason(self._connection)}",
            vm=self._vm,
            console_tail=self.tail(),
            log_path=str(self.log.path),
        )


def end_reason(connection: ClientConnection) -> str:
    """Return why a connection to a serial console has ended, in words for an error."""
    if connection.close_reason == "VM stopped":
        return "the VM has stopped"
    if connection.close_reason:
        return connection.close_reason
    if connection.close_code == CloseCode.NORMAL_CLOSURE:
        return "its server has closed the console"
    return f"its server or its agent has gone (code {connection.close_code})"


def _named(pattern: str | re.Pattern[str]) -> str:
    """Return what a wait waits for, for its error."""
    if isinstance(pattern, str):
        return repr(abbreviated(pattern, PATTERN_CHARACTERS))
    return f"a match of {abbreviated(pattern.pattern, PATTERN_CHARACTERS)!r}"
