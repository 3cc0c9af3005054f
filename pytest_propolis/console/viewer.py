"""What a person is shown of a console: the guest's own output, without what the shell protocol adds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

from .shell_protocol import Began, Ended, FrameParser, Output, Ready

__all__ = ["Viewer"]

_TYPED_LOOP: Final = re.compile(rb"[^\n]*sh -c 'eval \"\$\(echo .*", re.DOTALL)


class _AnyWord(Collection[str]):
    """Contains every word: only the shell knows which ones are in use."""

    def __contains__(self, word: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True


class Viewer:
    """Turns the bytes of a serial port into bytes for a terminal.

    While the quiet loop runs in the guest, lines end as in a file; on a terminal they get their carriage returns back.

    :param terminal: whether that is where they go.
    """

    def __init__(self, *, terminal: bool) -> None:
        self._parser = FrameParser(_AnyWord())
        self._terminal = terminal
        self._in_loop = False

    def feed(self, data: bytes) -> bytes:
        """Return what is to be shown. What may be the beginning of a signal of the protocol's is held back."""
        shown = bytearray()
        for signal in self._parser.feed(data):
            match signal:
                case Output(output):
                    shown += self._lines(output)
                case Ready():
                    shown = bytearray(_TYPED_LOOP.sub(b"", bytes(shown)))
                    self._in_loop = True
                case Began(nonce):
                    self._in_loop = not nonce.startswith("i")
                case Ended():
                    self._in_loop = True
        return bytes(shown)

    def _lines(self, output: bytes) -> bytes:
        if not (self._terminal and self._in_loop):
            return output
        return output.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
