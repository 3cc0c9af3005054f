"""Files on this side of a transfer: which parts of them hold data, and writing them sparse, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Final

__all__ = ["PIECE_BYTES", "SparseWriter", "appearing_file", "extents"]

PIECE_BYTES: Final = 1 << 18
SMALLEST_HOLE: Final = 1 << 20
"""A smaller one is not worth a command of its own."""
PAGE: Final = 4096
ZEROS: Final = bytes(PAGE)


def extents(file: BinaryIO) -> list[tuple[int, int]]:
    """Return the data extents of a file, as start and end; small holes count as data."""
    found: list[tuple[int, int]] = []
    for start, end in _extents(file.fileno(), os.fstat(file.fileno()).st_size):
        if found and start - found[-1][1] < SMALLEST_HOLE:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


class SparseWriter:
    """Writes a file from its beginning, and leaves holes where there are pages of zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rest = b""

    def write(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % PAGE
        self._rest = data[whole:]
        if ZEROS not in data:
            self._file.write(data[:whole])
            return
        for start in range(0, whole, PAGE):
            page = data[start : start + PAGE]
            if page == ZEROS:
                self._file.seek(PAGE, os.SEEK_CUR)
            else:
                self._file.write(page)

    def finish(self) -> None:
        self._file.write(self._rest)
        self._rest = b""
        self._file.truncate()


@contextlib.contextmanager
def appearing_file(path: Path, *, mode: int) -> Iterator[BinaryIO]:
    """Open a file that gets its name when it is complete. After an exception the previous file is unchanged."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".propolis-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
