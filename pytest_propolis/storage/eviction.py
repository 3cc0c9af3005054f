"""Eviction of files that can be derived or fetched again.

Directories under construction are left alone; the remains of a killed builder are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..errors import ArtifactCorrupt
from .files import files_below
from .images.image_headers import Qcow2Header

__all__ = ["Claim", "Evicted", "evict", "evict_fetched", "note_use"]

_MANIFEST: Final = "manifest.json"
_BLOCK_BYTES: Final = 512
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class Evicted(msgspec.Struct, frozen=True):
    """A removed directory, and the reason.

    :param size_bytes: the space that it used.
    """

    path: Path
    size_bytes: int
    reason: str


class Claim:
    """Protects a derived directory from eviction until the claim is closed or this process ends.

    A VM that runs from it may reopen its files, when it is reset or migrates.
    """

    def __init__(self, directory: Path, key: str) -> None:
        """
        :param directory: that of the `ArtifactStore`.
        :raises OSError: when the claim cannot be made.
        """
        self._fd: int | None = _open_lock(directory, key)
        fcntl.flock(self._fd, fcntl.LOCK_SH)  # at most one renaming long

    def close(self) -> None:
        """Release the claim. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def note_use(entry: Path) -> None:
    """Record a use now, without changing the files that its manifest describes."""
    with contextlib.suppress(OSError):
        os.utime(entry / _MANIFEST)


def evict(
    directory: Path, *, max_age_s: float, max_bytes: int, disks: Path | None = None, dry_run: bool = False
) -> list[Evicted]:
    """Remove derived directories of an `ArtifactStore` that are unused for too long, or exceed the total size.

    Directories with a `Claim`, and those that back a disk below `disks`, are kept. It blocks.

    :param max_age_s: how long a directory may go unused, in seconds.
    :param max_bytes: the total size allowed; the least recently used directories are removed first.
    """
    evicted = list(_half_made(directory, dry_run=dry_run))
    needed = _backing_directories(disks) if disks else frozenset()
    left = max_bytes
    for used, entry in sorted(_complete(directory / "derived"), reverse=True):
        size_bytes = _size(entry)
        left -= size_bytes
        idle_s = time.time() - used
        if entry.resolve() not in needed and (idle_s > max_age_s or left < 0):
            reason = f"not used for {idle_s / 86400:.1f} days" if idle_s > max_age_s else "there is too much"
            if _remove(directory, entry, entry.name, dry_run=dry_run):
                evicted.append(Evicted(entry, size_bytes, reason))
    return evicted


def evict_fetched(
    directory: Path, *, wanted: Collection[str], disks: Path | None = None, dry_run: bool = False
) -> list[Evicted]:
    """Remove fetched artifacts of an `ArtifactStore`, and what downloads that were broken off have left.

    Those that back a disk below `disks` are kept. No VM may run from an artifact meanwhile. It blocks.

    :param wanted: the hashes of artifacts to keep.
    """
    needed = _backing_directories(disks) if disks else frozenset()
    evicted = []
    for entry in directory.glob("*"):
        if not _HASH.fullmatch(entry.name) or entry.name in wanted or entry.resolve() in needed:
            continue
        size_bytes = _size(entry)
        if _remove(directory, entry, entry.name, lock="{}", dry_run=dry_run):
            evicted.append(Evicted(entry, size_bytes, "no catalog and no guest has it"))
    for part in (directory / "shelf").glob("*.download"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            evicted.append(Evicted(part, part.stat().st_size, "the download was broken off"))
            if not dry_run:
                part.unlink()
    return evicted


def _complete(derived: Path) -> Iterator[tuple[float, Path]]:
    for entry in derived.glob("[!.]*"):
        with contextlib.suppress(OSError):
            yield (entry / _MANIFEST).stat().st_mtime, entry


def _backing_directories(disks: Path) -> frozenset[Path]:
    """Return the directories of images that back existing disks, including disks kept by dead agents."""
    found = set()
    for disk in files_below(disks):
        if disk.suffix != ".qcow2":
            continue
        with contextlib.suppress(OSError, ArtifactCorrupt):
            if (header := Qcow2Header.read(disk)) and header.backing:
                found.add((disk.parent / header.backing).parent.resolve())
    return frozenset(found)


def _open_lock(directory: Path, key: str) -> int:
    locks = directory / "locks"
    locks.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(locks / f"used-{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _half_made(directory: Path, *, dry_run: bool) -> Iterator[Evicted]:
    for entry in (directory / "derived").glob(".*.*"):
        size_bytes = _size(entry)
        if _remove(directory, entry, entry.name.split(".")[1], dry_run=dry_run):
            yield Evicted(entry, size_bytes, "the process that made it was killed")


def _remove(directory: Path, entry: Path, key: str, *, lock: str = "derived-{}", dry_run: bool) -> bool:
    """Remove it unless its lock is held. Rename it first: a partial directory must not be found under its name.

    :param key: of the directory.
    :param lock: what `ArtifactStore` locks while it makes or fetches it, ``{}`` standing for the key.
    """
    from filelock import FileLock, Timeout  # here, as in `locks`

    try:
        with FileLock(directory / "locks" / f"{lock.format(key)}.lock", timeout=0):
            with _unclaimed(directory, key):
                if dry_run or not entry.exists():
                    return True
                renamed = entry if entry.name.startswith(".") else entry.with_name(f".{entry.name}.evicted")
                entry.rename(renamed)
            shutil.rmtree(renamed)
    except (Timeout, OSError):
        return False
    return True


@contextlib.contextmanager
def _unclaimed(directory: Path, key: str) -> Iterator[None]:
    """Prevent claims during the block.

    :raises BlockingIOError: if it is claimed.
    """
    fd = _open_lock(directory, key)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _size(entry: Path) -> int:
    total = 0
    for path in files_below(entry):
        with contextlib.suppress(OSError):
            total += path.lstat().st_blocks * _BLOCK_BYTES
    return total
