"""The keys that leave a console: Ctrl-] anywhere, or ``~.`` at the start of a line."""

from __future__ import annotations

from typing import Final

__all__ = ["EscapeKeys"]

LEAVE: Final = 0x1D
TILDE: Final = ord("~")
DOT: Final = ord(".")
LINE_ENDS: Final = frozenset(b"\r\n")


class EscapeKeys:
    """Detects the escape keys in typed input. ``~~`` at the start of a line types one tilde."""

    def __init__(self) -> None:
        self.left = False
        """Whether the user has asked to detach."""
        self._at_line_start = True
        self._held = False

    def feed(self, typed: bytes) -> bytes:
        """Return the input meant for the guest. Hold back a tilde at the start of a line until the next key."""
        passed = bytearray()
        for key in typed:
            if key == LEAVE or (self._held and key == DOT):
                self.left = True
                break
            if not self._held and self._at_line_start and key == TILDE:
                self._held = True
                continue
            if self._held and key != TILDE:
                passed.append(TILDE)
            self._held = False
            passed.append(key)
            self._at_line_start = key in LINE_ENDS
        return bytes(passed)
