"""Directories as tar archives: made while they are sent, and unpacked whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from .local_files import PIECE_BYTES

__all__ = ["archive", "archive_bytes", "unpack"]

RECORD: Final = tarfile.BLOCKSIZE


def archive(directory: Path) -> Iterator[bytes]:
    """Yield a tar archive of a directory's content, in pieces. Sockets are skipped.

    :raises OSError: when a file cannot be read, or changes its size meanwhile.
    """
    with tarfile.TarFile(fileobj=io.BytesIO(), mode="w", format=tarfile.GNU_FORMAT) as index:
        for path in (directory, *_below(directory)):
            if path.is_socket():
                continue
            name = "." if path == directory else f"./{path.relative_to(directory)}"
            info = index.gettarinfo(str(path), arcname=name)
            yield info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
            if info.isreg():
                yield from _content(path, info.size)
    yield bytes(2 * RECORD)


def archive_bytes(directory: Path) -> int:
    """Return the approximate size of the archive."""
    return sum(RECORD + (path.lstat().st_size if path.is_file() else 0) for path in _below(directory))


def _below(directory: Path) -> Iterator[Path]:
    for parent, directories, files in os.walk(directory, onerror=_raise):
        directories.sort()
        yield from (Path(parent, name) for name in sorted([*directories, *files]))


def _raise(error: OSError) -> None:
    raise error


def _content(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise OSError(None, "it became shorter while it was read", str(path))
            left -= len(piece)
            yield piece
    yield bytes(-size % RECORD)


def unpack(content: IO[bytes], target: Path) -> None:
    """Unpack an archive from the guest as a directory that must not exist. It belongs to the caller's user.

    Nothing gets outside of the directory. Device nodes and FIFOs are left out.

    :raises OSError: when it cannot be written, or the archive has a name that leads outside.
    """
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".propolis-"))
    try:
        with tarfile.open(fileobj=content, mode="r:", errors="surrogateescape") as members:
            members.extractall(temporary, filter=_filtered)  # noqa: S202 -- `_filtered` lets nothing lead outside
        temporary.rename(target)
    except tarfile.TarError as error:
        raise OSError(None, str(error), str(target)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _filtered(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    if member.ischr() or member.isblk() or member.isfifo():
        return None
    checked = tarfile.tar_filter(member, path).replace(deep=False)
    checked.mode = member.mode & 0o777
    checked.uid, checked.gid, checked.uname, checked.gname = os.getuid(), os.getgid(), "", ""
    return checked
