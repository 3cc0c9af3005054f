"""What was sent over one connection to a console, in case that it must be sent again over the next."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Sent"]

KEPT_BYTES: Final = 4 << 20
"""More than can be on its way to a server that has not read it."""


class Sent:
    """The last that was sent, and how much it was in all.

    `total` is how much it was. `is_sent_on` is set when what the guest's last host has not taken is sent to the next.
    """

    def __init__(self) -> None:
        self.is_sent_on = False
        self.total = 0
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0

    def append(self, data: bytes) -> None:
        self.total += len(data)
        self._kept.append(data)
        self._kept_bytes += len(data)
        while self._kept_bytes - len(self._kept[0]) >= KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft())

    def beyond(self, taken: int) -> tuple[bytes, int]:
        """What follows the first `taken` bytes, and how many bytes of that are not known any more: those before it."""
        forgotten = self.total - self._kept_bytes
        rest = b"".join(self._kept)[max(taken - forgotten, 0) :]
        return rest, max(forgotten - taken, 0)
