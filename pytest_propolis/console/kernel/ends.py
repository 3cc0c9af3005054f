"""Resets and ends of a VM that no test requested."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from ...errors import BootError, ConsoleClosed, ConsoleTimeout, GuestWasReset, ShellLost, VmStateError

if TYPE_CHECKING:
    from ..console import Console
    from ..transcript import Transcript

__all__ = ["EndKind", "ExpectedEnd", "UnexpectedEnd", "UnexpectedEnds", "asks_for_an_end", "expected_end"]

EndKind = Literal["reset", "exit"]
"""The guest resets its machine, or the VM stops."""

SHOWN_LINES: Final = 30
"""How many lines of the console before an end are shown."""

CONSEQUENCES: Final = (ShellLost, GuestWasReset, ConsoleClosed, BootError, VmStateError)
"""How an end ends what waits for the guest meanwhile."""

EXPECTED: Final[dict[EndKind, str]] = {
    "reset": "the guest was expected to reset itself, and has not",
    "exit": "the VM was expected to stop, and has not",
}

_ASKING: Final = re.compile(
    rb"(?:^[ncNC]?|[\s;&|(/`'\"])(?:reboot|poweroff|halt|shutdown|kexec|(?:tel)?init [06]|sysrq-trigger)(?![\w.-])",
    re.MULTILINE,
)
"""Programs and files by which a command resets its machine or switches it off. A further line of a command that is
framed begins with its kind."""


def asks_for_an_end(typed: bytes) -> bool:
    """Return whether what is typed at a console names a program or a file by which a guest is reset or switched off."""
    return _ASKING.search(typed) is not None


class UnexpectedEnd(msgspec.Struct, frozen=True, eq=False):
    """A reset, or the end of a VM.

    :param line: what is known of its cause, in words for a message.
    :param console: the last lines that the console showed before.
    """

    kind: EndKind
    line: str
    console: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return what the report shows of it."""
        return [self.line, *(f"| {line}" for line in self.console)]


class ExpectedEnd(msgspec.Struct, eq=False):
    """A reset of the guest's machine, or a stop of the VM, that a test expects.

    :param over: done when it has.
    :param reason: what is known of its cause; None until it has come.
    """

    kind: EndKind
    over: asyncio.Future[None]
    reason: str | None = None


class UnexpectedEnds:
    """Resets and ends of one VM whose guest takes commands, which the test neither caused nor was notified of."""

    def __init__(self) -> None:
        self._watching = False
        self._found: list[UnexpectedEnd] = []
        self._expectations: list[ExpectedEnd] = []

    def watch(self) -> None:
        """Regard resets and ends from here on as unexpected: the guest takes commands."""
        self._watching = True

    def allow(self) -> None:
        """Expect an end, which the test has requested, until the guest takes commands again."""
        self._watching = False

    def record(self, kind: EndKind, reason: str, transcript: Transcript) -> bool:
        """Record an end; return whether it is unexpected: it was not allowed, and no expectation of its kind exists."""
        expectations = [expectation for expectation in self._expectations if expectation.kind == kind]
        for expectation in expectations:
            expectation.reason = expectation.reason or reason
            if not expectation.over.done():
                expectation.over.set_result(None)
        is_unexpected = self._watching and not expectations
        if is_unexpected:
            self._found.append(UnexpectedEnd(kind, reason, transcript.tail(SHOWN_LINES)))
        self._watching = False
        return is_unexpected

    def acknowledge(self) -> None:
        """Drop the ends so far: an error or a state has reported them to the test."""
        self._found.clear()

    def take(self) -> list[UnexpectedEnd]:
        """Return the ends that were not taken yet."""
        taken, self._found = self._found, []
        return taken

    @contextmanager
    def expecting(self, kind: EndKind) -> Iterator[ExpectedEnd]:
        """Treat ends of this kind in the block as expected."""
        expectation = ExpectedEnd(kind, asyncio.get_running_loop().create_future())
        self._expectations.append(expectation)
        try:
            yield expectation
        finally:
            self._expectations.remove(expectation)

    @contextmanager
    def acknowledged_by_errors(self) -> Iterator[None]:
        """Acknowledge the ends that cause an error in the block: the test gets the error."""
        try:
            yield
        except CONSEQUENCES as error:
            if not isinstance(error, ShellLost):
                self.allow()  # the console may close a moment later
            self.acknowledge()
            raise


@asynccontextmanager
async def expected_end(
    kind: EndKind, ends: UnexpectedEnds, console: Callable[[], Console], *, vm: str, timeout_s: float
) -> AsyncIterator[ExpectedEnd]:
    """Expect an end in the block, or within a time after it. See `TestVm.expect_reset` and `TestVm.expect_exit`."""
    with ends.expecting(kind) as expectation:
        try:
            yield expectation
        except CONSEQUENCES as error:
            if not expectation.over.done() or error.vm != vm:
                raise
        if not expectation.over.done():
            await _come(expectation, console(), vm=vm, timeout_s=timeout_s)


async def _come(expectation: ExpectedEnd, console: Console, *, vm: str, timeout_s: float) -> None:
    console.transcript.on_failure(expectation.over)
    try:
        async with asyncio.timeout(timeout_s):
            await expectation.over
    except TimeoutError:
        raise ConsoleTimeout(
            EXPECTED[expectation.kind],
            vm=vm,
            waited_s=timeout_s,
            console_tail=console.tail(),
            log_path=str(console.log_path),
        ) from None
