"""Files and directories on their way into a guest."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from .archive import archive
from .guest_side import GuestSide
from .local_files import PIECE_BYTES, extents
from .progress import Meter

__all__ = ["upload_bytes", "upload_directory", "upload_file"]

_PLACE: Final = "[ -d @DIRECTORY@ ] || { echo 'there is no directory' @DIRECTORY@; exit 1; }\n"
_FILE_PLACE: Final = _PLACE + "[ ! -d @FILE@ ] || { echo 'it is a directory'; exit 1; }\n"
_NEW_PLACE: Final = _PLACE + "[ ! -e @FILE@ ] && [ ! -L @FILE@ ] || { echo 'it exists already'; exit 1; }\n"
_EMPTY: Final = _FILE_PLACE + "umask 077; : >@PART@\n"
# The size comes first, so that a second attempt appends at the same place.
_APPEND: Final = "truncate -s {start} @PART@ && cat >>@PART@\n"
_FINISH: Final = "truncate -s {size} @PART@ && chmod {mode:o} @PART@ && mv -f @PART@ @FILE@\n"
_UNPACK: Final = _NEW_PLACE + "rm -rf @PART@; umask 077; mkdir @PART@ && cd @PART@ && tar -xpof - \n"
_FINISH_DIRECTORY: Final = "mv @PART@ @FILE@\n"


async def upload_bytes(guest: GuestSide, data: bytes, *, mode: int, meter: Meter) -> None:
    """Write bytes to a file."""
    async with guest.cleaned_up():
        await guest.run(_EMPTY)
        await guest.upload(_APPEND.format(start=0), _metered(lambda: _pieces(data), meter))
        await guest.run(_FINISH.format(size=len(data), mode=mode))


async def upload_file(guest: GuestSide, file: BinaryIO, *, mode: int, meter: Meter) -> None:
    """Copy a file. What is a hole of at least a MiB stays one.

    :raises FileTransferError: when the file changes meanwhile.
    """
    before = os.fstat(file.fileno())
    async with guest.cleaned_up():
        await guest.run(_EMPTY)
        for start, end in extents(file):
            await guest.upload(_APPEND.format(start=start), _metered(partial(_part, file, start, end), meter))
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise guest.error(f"{file.name} changed while it was read")
        await guest.run(_FINISH.format(size=before.st_size, mode=mode))


async def upload_directory(guest: GuestSide, directory: Path, *, meter: Meter) -> None:
    """Copy a directory with all that is in it, to a name that must not exist yet."""
    async with guest.cleaned_up():
        await guest.upload(_UNPACK, _metered(lambda: archive(directory), meter))
        await guest.run(_NEW_PLACE + _FINISH_DIRECTORY)


def _part(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while piece := file.read(min(PIECE_BYTES, end - file.tell())):
        yield piece


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


def _metered(pieces: Callable[[], Iterator[bytes]], meter: Meter) -> Callable[[], AsyncIterator[bytes]]:
    """Return a function that starts a new stream of pieces with a new meter at each call."""
    base = meter.done_bytes

    async def stream() -> AsyncIterator[bytes]:
        done = base
        meter.at(done)
        for piece in pieces():
            yield piece
            done += len(piece)
            meter.at(done)

    return stream
