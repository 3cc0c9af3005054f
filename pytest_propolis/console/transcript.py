"""The transcript of a console: its text so far, and any number of waits for what is to come."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

__all__ = ["Found", "Transcript"]

KEPT_CHARACTERS: Final = 4 << 20
PIECE_CHARACTERS: Final = 1 << 14
LINE_CHARACTERS: Final = 400
"""How long lines are assumed to be when only their number is given."""
KEPT_BREAKS: Final = 1000
PATTERN_REACH: Final = 1 << 16
"""How far back from new text a regular expression may begin to match."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a wait found.

    :param before: the text between where the wait began to look and the match.
    :param text: the text that matched.
    :param groups: the groups of a regular expression.
    """

    before: str
    text: str
    groups: tuple[str | None, ...] = ()


class _Wait(msgspec.Struct, eq=False):
    pattern: re.Pattern[str]
    start: int
    looked_to: int
    result: asyncio.Future[Found]


class _Break(NamedTuple):
    """Where the tail differs from the text: a stretch is left out, or replaced by text of another source."""

    start: int
    stop: int
    other: str = ""


class Transcript:
    """Text with absolute positions. The last 4 Mi characters are kept.

    A wait looks at what comes after `cursor`, the end of the last match; so text that came before the wait was asked
    for can satisfy it, once. Waits do not disturb each other: each sees all the text from its own start.
    """

    def __init__(self) -> None:
        # In pieces, because appending to one string copies all of it.
        self._pieces: deque[str] = deque([""])
        self._offset = 0
        self._end = 0
        self._waits: deque[_Wait] = deque()
        self._watchers: set[asyncio.Future[Any]] = set()
        self._failure: Exception | None = None
        self._interruption: Exception | None = None
        self._breaks: deque[_Break] = deque(maxlen=KEPT_BREAKS)
        self.cursor = 0

    @property
    def end(self) -> int:
        """The position behind the last character."""
        return self._end

    def since(self, position: int) -> str:
        """Return the text from a position on, as far as it is kept."""
        wanted = self._end - max(position, self._offset)
        pieces: list[str] = []
        for piece in reversed(self._pieces):
            if wanted <= 0:
                break
            pieces.append(piece[-wanted:])
            wanted -= len(piece)
        return "".join(reversed(pieces))

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines that are not hidden, without empty ones at the very end."""
        text, end, enough = "", self._end, lines * LINE_CHARACTERS
        for start, stop, other in (*reversed(self._breaks), _Break(0, 0)):
            text = _joined(self._between(max(stop, end - enough + len(text)), end), text)
            text = _joined(other, text)
            end = min(end, start)
            if len(text) >= enough:
                break
        return tuple(text.rstrip().splitlines()[-lines:])

    def hide(self, start: int) -> None:
        """Leave out of every later tail what came from a position on until now."""
        self._breaks.append(_Break(start, self._end))

    def append_other(self, text: str) -> None:
        """Show text of another source in later tails, behind what has come so far. Waits do not see it."""
        if not text:
            return
        if self._breaks and self._breaks[-1].other and self._breaks[-1].stop == self._end:
            text = self._breaks.pop().other + text
        self._breaks.append(_Break(self._end, self._end, text[-PIECE_CHARACTERS:]))

    def _between(self, start: int, stop: int) -> str:
        start = max(start, self._offset)
        return self.since(start)[: stop - start] if stop > start else ""

    def append(self, text: str) -> None:
        if not text:
            return
        self._interruption = None
        if len(self._pieces[-1]) < PIECE_CHARACTERS:
            self._pieces[-1] += text
        else:
            self._pieces.append(text)
        self._end += len(text)
        while self._end - self._offset - len(self._pieces[0]) >= KEPT_CHARACTERS:
            self._offset += len(self._pieces.popleft())
        for wait in list(self._waits):
            self._look(wait)

    def skip(self) -> None:
        """Let no later wait see what has come so far."""
        self.skip_to(self.end)
        self._interruption = None

    def skip_to(self, position: int) -> None:
        """Let no later wait see what came before a position."""
        self.cursor = max(self.cursor, position)

    def fail(self, error: Exception) -> None:
        """End all waits, and all later ones that the text so far does not satisfy. The first reason stays."""
        self._failure = self._failure or error
        self._end_all(error)

    def interrupt(self, error: Exception) -> None:
        """End all waits; later ones too, until more text comes or `skip` is called."""
        self._interruption = error
        self._end_all(error)

    def end_waits(self, error: Exception) -> None:
        """End the waits for text that are under way, and no others."""
        _fail((wait.result for wait in self._waits), error)
        self._waits.clear()

    def _end_all(self, error: Exception) -> None:
        self.end_waits(error)
        _fail(list(self._watchers), error)
        self._watchers.clear()

    def on_failure(self, future: asyncio.Future[Any]) -> None:
        """Have a future fail with the console, if it is not done by then."""
        if error := self._failure or self._interruption:
            future.set_exception(error)
            future.exception()  # nor shall this one
            return
        self._watchers.add(future)
        future.add_done_callback(self._watchers.discard)

    async def wait_for(self, pattern: str | re.Pattern[str]) -> Found:
        """Wait until a text, or a match of a regular expression, appears behind the cursor; the first one counts.

        The cursor moves behind it.
        """
        compiled = re.compile(re.escape(pattern)) if isinstance(pattern, str) else pattern
        wait = _Wait(compiled, self.cursor, self.cursor, asyncio.get_running_loop().create_future())
        self._look(wait)
        if not wait.result.done():
            if error := self._failure or self._interruption:
                raise error
            self._waits.append(wait)
        try:
            return await wait.result
        finally:
            if wait in self._waits:
                self._waits.remove(wait)

    def _look(self, wait: _Wait) -> None:
        if wait.result.done():
            return
        start = max(wait.start, wait.looked_to - PATTERN_REACH, self._offset)
        # With the character before, so that ^ tells the start of a line from the start of the search.
        base = max(start - 1, self._offset)
        match = wait.pattern.search(self.since(base), start - base)
        wait.looked_to = self.end
        if match:
            looked_from = max(wait.start, self._offset)
            before = self.since(looked_from)[: base + match.start() - looked_from]
            wait.result.set_result(Found(before=before, text=match[0], groups=match.groups()))
            self.cursor = max(self.cursor, base + match.end())


def _fail(futures: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # a future that is not awaited any more shall not complain


def _joined(before: str, after: str) -> str:
    """Join two texts, each of which begins on a line of its own."""
    return before + ("\n" if before and after and not before.endswith("\n") else "") + after
