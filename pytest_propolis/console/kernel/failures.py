"""Messages of a guest's kernel: failures, as its console shows them, and all messages of a boot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from ...errors import ConsoleError, ShellError
from .ends import UnexpectedEnds

if TYPE_CHECKING:
    from ..console import Console
    from ..transcript import Transcript

__all__ = ["Expectation", "FailureKind", "KernelFailure", "KernelFailures", "kernel_messages"]

FailureKind = Literal["oops", "panic"]
"""A kernel goes on after an oops or a BUG, and not after a panic."""

LINE_BYTES: Final = 1000
SHOWN_LINES: Final = 60
"""How many lines of a failure are shown."""

_FIRST_LINE: Final = re.compile(
    rb"\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? "
    rb"((?P<panic>Kernel panic - not syncing)[^\r\n]*"
    rb"|(?:[\w -]+: )?(?:BUG: |Oops: |kernel BUG |general protection fault)[^\r\n]*)\r\n"
)
"""With the kernel's clock, and the carriage return that it writes. A command's terminal is raw, and adds none."""

_MESSAGE: Final = re.compile(r"\[ *\d+\.\d+\].*")
_LAST_LINE: Final = re.compile(r"---\[ end (?:trace|Kernel panic)")


class KernelFailure(msgspec.Struct, frozen=True, eq=False):
    """A panic, an oops or a BUG.

    :param line: its first line, without the time.
    :param transcript: what shows it; `start`: a position there before that line.
    """

    kind: FailureKind
    line: str
    transcript: Transcript
    start: int

    def lines(self) -> list[str]:
        """Return what the kernel wrote of it, as far as it is kept."""
        text = self.transcript.since(self.start)
        found = text.find(self.line)
        if found < 0:
            return [self.line]
        lines = text[text.rfind("\n", 0, found) + 1 :].splitlines()[:SHOWN_LINES]
        last = next((number for number, line in enumerate(lines, 1) if _LAST_LINE.search(line)), len(lines))
        return lines[:last]


class Expectation(msgspec.Struct, eq=False):
    """That a kernel panics now.

    :param line: the first line of the panic, without the time; None until it has come.
    :param over: done when the kernel has written all of it.
    """

    over: asyncio.Future[None]
    line: str | None = None


class KernelFailures:
    """What has gone wrong in one VM's kernel, and was not expected.

    :param vm: the VM's name, for reports.
    """

    def __init__(self, vm: str) -> None:
        self.vm = vm
        self.is_closed = False
        """Whether nothing is to come any more."""
        self.ends = UnexpectedEnds()
        """Resets and ends of the VM; those after a panic are the panic's."""
        self._found: list[KernelFailure] = []
        self._expectations: list[Expectation] = []
        self._rest = b""
        self._open: FailureKind | None = None
        """What has begun and not ended: further first lines belong to it, but a panic may follow an oops."""
        self._ending: KernelFailure | None = None
        """A panic of which only the last line was seen, which nothing must follow."""
        self._ending_at = 0

    def feed(self, data: bytes, transcript: Transcript) -> None:
        """Look for failures in what the console showed, which the transcript has already."""
        text = self._rest + data
        start = transcript.end - len(text)
        for found in _FIRST_LINE.finditer(text):
            kind: FailureKind = "panic" if found["panic"] else "oops"
            if kind != self._open and self._open != "panic":
                self._record(KernelFailure(kind, found[1].decode(errors="replace"), transcript, max(start, 0)))
                self._open = kind
        if self._open == "oops" and b"---[ end trace" in text:
            self._open = None
        self._rest = text[text.rfind(b"\n") + 1 :][-LINE_BYTES:]

    def last_line(self, reason: str, transcript: Transcript) -> None:
        """Take note of the last line of a panic, which is at the transcript's end."""
        self._ending = KernelFailure("panic", reason, transcript, max(transcript.end - LINE_BYTES, 0))
        self._ending_at = transcript.end

    def settle(self) -> None:
        """A panic is over, if there was one: its last line has come, the guest was reset, or the console has closed."""
        if self._ends_in_panic() and self._open != "panic":
            assert self._ending is not None
            self._record(self._ending)
        self._open = self._ending = None
        for expectation in self._expectations:
            if expectation.line is not None and not expectation.over.done():
                expectation.over.set_result(None)

    def take(self) -> list[KernelFailure]:
        """Return the failures that were not taken yet."""
        if self._ends_in_panic():
            self.settle()
        taken, self._found = self._found, []
        return taken

    def forget(self) -> None:
        """Drop the failures that were not taken yet: they were another VM's, or an error has reported them."""
        self._found.clear()
        self._open = self._ending = None

    @contextmanager
    def expecting(self) -> Iterator[Expectation]:
        """Take failures of the block for expected ones."""
        expectation = Expectation(asyncio.get_running_loop().create_future())
        self._expectations.append(expectation)
        try:
            yield expectation
        finally:
            self._expectations.remove(expectation)

    def _ends_in_panic(self) -> bool:
        """Return whether nothing has followed the last line of a panic."""
        return self._ending is not None and self._ending.transcript.end == self._ending_at

    def _record(self, failure: KernelFailure) -> None:
        if not self._expectations:
            self._found.append(failure)
        if failure.kind == "panic":
            self.ends.allow()
            for expectation in self._expectations:
                expectation.line = expectation.line or failure.line


async def kernel_messages(console: Console, dmesg: Callable[[], Awaitable[str]]) -> tuple[str, ...]:
    """Return the kernel's messages of this boot: from the guest, or else from what its console has shown."""
    try:
        return tuple((await dmesg()).splitlines())
    except (ShellError, ConsoleError):
        return tuple(_MESSAGE.findall(console.transcript.since(console.boot_start)))
