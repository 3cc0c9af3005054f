"""The history of a serial port: the first and the last MiB of all that the guest wrote, addressed by absolute offset.

As propolis-server's serial console buffer. Readers are cursors into the history, so that there is no transition between
"history" and "live": no byte is lost or duplicated, and a slow reader never blocks the guest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

__all__ = ["HistoryContent", "HistoryGap", "SerialHistory"]

KEPT_BYTES = 1 << 20


class HistoryGap(Exception):
    """Raised when an offset lies in the part of the history that was dropped."""


class HistoryContent(msgspec.Struct, frozen=True, kw_only=True):
    """A history in transfer to another server.

    :param last_offset: the offset of the first byte of `last`.
    """

    first: bytes
    last: bytes
    last_offset: int


class SerialHistory:
    """All output of one serial port.

    :param kept_bytes: how much of the beginning, and how much of the end, is kept.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept = kept_bytes
        self._first = bytearray()
        self._last = bytearray()
        self._last_offset = kept_bytes
        self._grew = asyncio.Event()
        self._ended = False

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        if len(self._first) < self._kept:
            return len(self._first)
        return self._last_offset + len(self._last)

    @property
    def ended(self) -> bool:
        """Whether the history is complete."""
        return self._ended

    def append(self, data: bytes) -> None:
        room = self._kept - len(self._first)
        self._first += data[:room]
        self._last += data[room:] if room > 0 else data
        # Trimming moves the whole buffer: do it once per kept size, not once per chunk.
        if len(self._last) > 2 * self._kept:
            surplus = len(self._last) - self._kept
            del self._last[:surplus]
            self._last_offset += surplus
        self.wake()

    def content(self) -> HistoryContent:
        """Return the kept parts, for transfer to another server."""
        return HistoryContent(first=bytes(self._first), last=bytes(self._last), last_offset=self._last_offset)

    def restore(self, content: HistoryContent) -> None:
        """Continue the history of another server. Nothing may have been written here yet."""
        assert self.end == 0, "a history that has begun cannot be another one"
        self._first[:] = content.first
        self._last[:] = content.last
        self._last_offset = content.last_offset
        self.wake()

    def finish(self) -> None:
        """Notify the readers that the history is complete."""
        self._ended = True
        self.wake()

    def read(self, offset: int, max_bytes: int) -> bytes:
        """The bytes from `offset`, at most `max_bytes`; empty at and beyond the end.

        A read that starts in the first part stops at its end.

        :raises HistoryGap: when `offset` lies between the two parts that are kept.
        """
        if offset < len(self._first):
            return bytes(self._first[offset : offset + max_bytes])
        kept_from = max(self._last_offset, self.end - self._kept)
        if offset < kept_from and len(self._first) == self._kept and offset != self.end:
            raise HistoryGap(
                f"offset {offset} is no longer kept: only the first {self._kept} and the last {self._kept} bytes are"
            )
        start = offset - self._last_offset
        return bytes(self._last[start : start + max_bytes])

    def offset_of(self, *, from_start: int | None = None, most_recent: int | None = None) -> int:
        """Turn the two ways of asking for a place into an offset; the end, without a place."""
        if from_start is not None:
            return min(from_start, self.end)
        if most_recent is not None:
            return max(0, self.end - most_recent)
        return self.end

    async def wait_beyond(self, offset: int, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Wait until there is a byte at `offset`. False when the port ended before.

        :param unless: another reason to return True; call `wake` when it holds.
        """
        while self.end <= offset and not unless():
            if self._ended:
                return False
            await self._grew.wait()
        return True

    def wake(self) -> None:
        """Have all readers look again."""
        self._grew.set()
        self._grew = asyncio.Event()
