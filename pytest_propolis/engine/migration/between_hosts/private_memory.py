"""The memory of a fork, which is a private mapping of its template's, as another process can read it."""

from __future__ import annotations

import array
import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from .memory_contents import CHUNK_BYTES, data_chunks

__all__ = ["PrivateMemory"]

PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")

MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+ [1-9][0-9]*) +(.*)")

# /proc/PID/pagemap: the page is in memory, is swapped out, is one of the file's own.
PRESENT: Final = 1 << 63
SWAPPED: Final = 1 << 62
OF_FILE: Final = 1 << 61


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the mapping: one line of the kernel's."""

    address: int
    end: int
    offset: int


class PrivateMemory:
    """The memory of a running QEMU that maps all of a file privately. Close it.

    :param memory: ``/proc/PID/mem``; `pages` is its pagemap, and `file` what is mapped. They become this object's.
    """

    def __init__(self, pieces: list[_Piece], size: int, memory: int, pages: int, file: int) -> None:
        self.size = size
        self._pieces = pieces
        self._memory = memory
        self._pages = pages
        self._file = file

    @classmethod
    def of(cls, pid: int, size: int) -> Self | None:
        """Return the memory of a process that maps a file of this size; None if it has none, or may not be read.

        :param size: in bytes.
        """
        with contextlib.ExitStack() as undo:
            try:
                found = _mapping(pid, size)
                file = _open_file(pid, found[1]) if found else None
                if found is None or file is None:
                    return None
                undo.callback(os.close, file)
                opened = []
                for name in ("mem", "pagemap"):
                    opened.append(os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC))
                    undo.callback(os.close, opened[-1])
                memory = cls(found[0], size, opened[0], opened[1], file)
                memory._read(0, PAGE_BYTES)
            except OSError:
                return None
            undo.pop_all()
            return memory

    def chunks(self, known: set[int]) -> Iterator[tuple[int, bytes]]:
        """As `MemoryContents`: those with data of the file, and those with pages that the process has written."""
        wanted = self._written_chunks() | known | set(data_chunks(self._file))
        for start in sorted(wanted):
            yield start, self._read(start, min(CHUNK_BYTES, self.size - start))

    def close(self) -> None:
        """Idempotent."""
        opened, self._memory, self._pages, self._file = (self._memory, self._pages, self._file), -1, -1, -1
        for descriptor in opened:
            if descriptor >= 0:
                os.close(descriptor)

    def _read(self, start: int, length: int) -> bytes:
        """
        :raises OSError: when the process has ended.
        """
        data = bytearray()
        while len(data) < length:
            at = start + len(data)
            piece = next(piece for piece in self._pieces if at < piece.offset + piece.end - piece.address)
            address = piece.address + at - piece.offset
            data += (read := os.pread(self._memory, min(length - len(data), piece.end - address), address))
            if not read:
                raise ProcessLookupError("QEMU has ended")
        return bytes(data)

    def _written_chunks(self) -> set[int]:
        found = set()
        for piece in self._pieces:
            position = piece.address // PAGE_BYTES * 8
            count = (piece.end - piece.address) // PAGE_BYTES * 8
            entries = array.array("Q", os.pread(self._pages, count, position))
            if len(entries) * 8 != count:
                raise ProcessLookupError("QEMU has ended")
            for number, entry in enumerate(entries):
                if entry & (PRESENT | SWAPPED) and not entry & OF_FILE:
                    found.add((piece.offset + number * PAGE_BYTES) // CHUNK_BYTES * CHUNK_BYTES)
        return found


def _mapping(pid: int, size: int) -> tuple[list[_Piece], str] | None:
    """Return the parts and the path of the only file of which a process maps so much privately, if there is one."""
    found = defaultdict(list)
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if match := MAPPING.fullmatch(line):
            address, end, offset = (int(number, 16) for number in match.group(1, 2, 3))
            found[match.group(4, 5)].append(_Piece(address, end, offset))
    whole = [(pieces, path) for (_, path), pieces in found.items() if _covers(pieces, size)]
    return whole[0] if len(whole) == 1 else None


def _covers(pieces: list[_Piece], size: int) -> bool:
    pieces.sort(key=lambda piece: piece.offset)
    at = 0
    for piece in pieces:
        if piece.offset != at:
            return False
        at += piece.end - piece.address
    return at == size


def _open_file(pid: int, path: str) -> int | None:
    """Open the file of this path that a process has open, also if it was removed; None if it has none."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(entry) == path:  # noqa: PTH115 - as text: a file that was removed has a suffix
                return os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    return None
