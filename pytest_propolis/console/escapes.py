"""Terminal output becomes plain text: escape sequences go, words stay in place."""

from __future__ import annotations

import codecs
import re
from typing import Final

__all__ = ["TextFilter"]

_SEQUENCE: Final = re.compile(
    r"\x1b\[(?P<columns>[0-9]{0,5})C"  # cursor right: spaces
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # any other control sequence
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # strings: titles and the like
    r"|\x1b[ -/]*[0-Z\\^-~]"  # two-character escapes
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]"  # controls but for tab, newline and escape
)
_LIVE: Final = dict.fromkeys([0x1B, *range(0x80, 0xA0)])
"""Escape and the C1 controls, which begin sequences by themselves."""
_UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)?\Z")
_LONGEST_SEQUENCE: Final = 4096
_WIDEST_MOVE: Final = 10_000


class TextFilter:
    """Feeds on bytes as they come, and gives text: printable characters, tabs and newlines.

    Nothing that a terminal would act on gets through, not even what the removal of sequences puts together.
    Carriage returns and escape sequences are dropped, but a move of the cursor to the right becomes spaces. What is cut
    by the end of a chunk, a character or a sequence, is kept for the next.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""

    def feed(self, data: bytes) -> str:
        text = self._rest + self._decode(data)
        self._rest = ""
        if "\x1b" in text:
            unfinished = _UNFINISHED.search(text)
            if unfinished and len(text) - unfinished.start() < _LONGEST_SEQUENCE:
                self._rest = text[unfinished.start() :]
                text = text[: unfinished.start()]
        return _plain(text)

    def finish(self) -> str:
        """Return what is kept: nothing that follows completes it."""
        text = self._rest + self._decode(b"", final=True)
        self._rest = ""
        return _plain(text)


def _plain(text: str) -> str:
    return _SEQUENCE.sub(_replacement, text).translate(_LIVE)


def _replacement(sequence: re.Match[str]) -> str:
    columns = sequence["columns"]
    if columns is None:
        return ""
    return " " * min(int(columns or 1), _WIDEST_MOVE)
