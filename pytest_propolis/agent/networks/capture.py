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
        self._records: deque[bytes] = deque()
        self._bytes = 0

    def add(self, frame: bytes) -> None:
        """Add a frame that has entered the network."""
        micros = time.time_ns() // 1000
        record = FRAME_HEADER.pack(micros // 1_000_000, micros % 1_000_000, len(frame), len(frame)) + frame
        self._records.append(record)
        self._bytes += len(record)
        while self._bytes > self._limit_bytes:
            self._bytes -= len(self._records.popleft())

    def pcap(self) -> bytes:
        """Return the frames as the contents of a pcap file; empty if there were none."""
        return GLOBAL_HEADER + b"".join(self._records) if self._records else b""
