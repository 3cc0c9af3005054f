"""Packet capture of the latest frames of a network."""

from __future__ import annotations

import struct
import time
from collections import deque
from typing import Final

__all__ = ["Capture"]

LIMIT_BYTES: Final = 4 << 20
ETHERNET: Final = 1
SNAP_BYTES: Final = 1 << 18
GLOBAL_HEADER: Final = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_BYTES, ETHERNET)
FRAME_HEADER: Final = struct.Struct("<IIII")


class Capture:
    """Keeps the latest frames, in pcap format.

    :param limit_bytes: how much is kept.
    """

    def __init__(self, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._records: deque[tuple[int, bytes]] = deque()
        """When each frame was added, in microseconds, and the frame: few of them are ever read."""
        self._bytes = 0

    def add(self, frame: bytes) -> None:
        """Add a frame that has entered the network."""
        self._records.append((time.time_ns() // 1000, frame))
        self._bytes += FRAME_HEADER.size + len(frame)
        while self._bytes > self._limit_bytes:
            self._bytes -= FRAME_HEADER.size + len(self._records.popleft()[1])

    def pcap(self) -> bytes:
        """Return the frames as the contents of a pcap file; empty if there were none."""
        if not self._records:
            return b""
        parts = [GLOBAL_HEADER]
        for micros, frame in self._records:
            seconds, rest = divmod(micros, 1_000_000)
            parts += FRAME_HEADER.pack(seconds, rest, len(frame), len(frame)), frame
        return b"".join(parts)
