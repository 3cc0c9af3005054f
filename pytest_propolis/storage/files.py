"""Hash, copy and sync whole files in chunks, so that the event loop is not blocked."""

from __future__ import annotations

import asyncio
import errno
import grp
import hashlib
import os
import pwd
import shutil
import stat
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from ..errors import HostError, ResourceExhausted
from ..operating_system.no_space import is_no_space

__all__ = [
    "copy",
    "files_below",
    "mount_point",
    "move",
    "open_log",
    "private_directory",
    "remove",
    "require_trusted",
    "sha256_of",
    "space_errors",
    "sync",
    "write_all",
]

_CHUNK_BYTES: Final = 1 << 18
"""About a millisecond of hashing or inflating: the longest time for which the event loop is blocked."""

_NO_SPACE_HINT: Final = (
    "free some space there, or choose another directory with --propolis-artifact-dir or PROPOLIS_ARTIFACT_DIR"
)


async def _chunks(stream: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
        await asyncio.sleep(0)


async def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in lowercase hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        async for chunk in _chunks(stream):
            digest.update(chunk)
    return digest.hexdigest()


async def write_all(stream: IO[bytes], destination: Path) -> None:
    """Write the rest of ``stream`` to ``destination``. Durable only after `sync`."""
    with destination.open("wb") as output:
        async for chunk in _chunks(stream):
            output.write(chunk)


async def copy(source: Path, destination: Path) -> None:
    """Copy the content of a file. Durable only after `sync`."""
    with source.open("rb") as stream:
        await write_all(stream, destination)


async def move(source: Path, destination: Path) -> None:
    """Move a file, also to another file system.

    :raises OSError: when that cannot be done.
    """
    try:
        source.rename(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        await copy(source, destination)
        source.unlink()


def sync(*paths: Path) -> None:
    """Sync the content of these files, or the entries of these directories, so that they survive a power failure."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mount_point(path: Path) -> str:
    """Return where the file system of a path is mounted."""
    resolved = path.resolve()
    return str(next(path for path in (resolved, *resolved.parents) if path.is_mount()))


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to it; follow no link: in a directory of another user's it could lead to any file.

    :raises HostError: if it cannot be opened, naming it.
    """
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        log = os.fdopen(os.open(path, flags, 0o666), "ab")
    except OSError as error:
        raise HostError(
            f"the log {path} cannot be opened: {error.strerror or error}",
            hint="make room there, or choose another directory with --propolis-log-dir",
        ) from None
    log.seek(0, os.SEEK_END)
    return log


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log; none if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def remove(paths: Iterable[Path]) -> None:
    """Remove files, and directories with all their contents."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def files_below(directory: Path) -> Iterator[Path]:
    """Yield all in a directory and below it that is no directory itself; skip what vanishes or cannot be read.

    `Path.rglob` raises when another process removes a directory meanwhile.
    """
    for parent, directories, names in os.walk(directory):
        links = (name for name in directories if Path(parent, name).is_symlink())
        yield from (Path(parent, name) for name in (*names, *links))


def private_directory(path: Path) -> Path:
    """Create a directory that only its owner can enter, if it does not exist; its parents follow the umask.

    :raises HostError: if it cannot be created or written, naming it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        if is_no_space(error):
            raise
        raise _unusable(path, error.strerror or str(error)) from None
    if not writable:
        raise _unusable(path, "it cannot be written")
    require_trusted(path)
    return path


def require_trusted(path: Path) -> None:
    """Reject a directory that another user can write to: its files are executed, and its manifests are trusted.

    :raises HostError: naming the directory and the users with write access. A missing directory passes.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise _unusable(path, f"it belongs to another user (uid {status.st_uid})")
    if status.st_mode & stat.S_IWOTH:
        raise _unusable(path, "every user can write to it")
    if status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid):
        raise _unusable(path, f"a group of users can write to it (gid {status.st_gid})")


def _is_private_group(gid: int) -> bool:
    """Return whether it is this user's private group, which Debian and Fedora create along with a umask of 002."""
    try:
        user = pwd.getpwuid(os.geteuid())
        return gid == user.pw_gid and set(grp.getgrgid(gid).gr_mem) <= {user.pw_name}
    except KeyError:
        return False


def _unusable(path: Path, reason: str) -> HostError:
    return HostError(
        f"artifact directory {path} cannot be used: {reason}",
        hint="make it a directory of yours, or choose another with --propolis-artifact-dir or PROPOLIS_ARTIFACT_DIR",
    )


@contextmanager
def space_errors(directory: Path) -> Iterator[None]:
    """Convert "no space left" and "over quota" errors inside the block into one that names ``directory``.

    :raises ResourceExhausted: instead of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        if not is_no_space(error):
            raise
        raise ResourceExhausted(f"no space left in {directory}: {error.strerror}", hint=_NO_SPACE_HINT) from error
