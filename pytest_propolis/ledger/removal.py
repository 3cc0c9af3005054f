"""Safe removal of paths: never through a symbolic link or a mount, and never another user's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import AgentError
from ..operating_system.registry import system

__all__ = ["empty", "open_no_link", "parent_of", "refusal", "remove", "require_unmounted"]


def refusal(path: Path, why: str) -> AgentError:
    """Return the error to raise for a path that must not be removed."""
    return AgentError(f"{path} is not removed: it {why}", hint="look at it, and remove it by hand if it is yours")


@contextmanager
def parent_of(path: Path, roots: Sequence[Path]) -> Iterator[int]:
    """Open the parent directory of the path, from its root down, without following symbolic links."""
    root = next((root for root in roots if root in path.parents), None)
    if root is None:
        raise refusal(path, "is neither in the run directory nor in an allowed root")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.relative_to(root).parts[:-1]:
            descriptor = _descend(descriptor, part, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _descend(parent: int, name: str, path: Path) -> int:
    try:
        descriptor = open_no_link(name, parent)
    except NotADirectoryError:
        raise refusal(path, f"is reached through {name!r}, which is a symbolic link or no directory") from None
    os.close(parent)
    return descriptor


def open_no_link(name: str | Path, parent: int | None = None) -> int:
    """Open a directory relative to an open one and return its descriptor; raise `OSError` for a symbolic link."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def remove(path: Path, parent: int) -> None:
    """Remove this name from the open directory; for a symbolic link, remove the link itself."""
    found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
    if found.st_uid != os.geteuid():
        raise refusal(path, f"belongs to uid {found.st_uid}")
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(path.name, dir_fd=parent)
        return
    empty(path, open_no_link(path.name, parent))
    os.rmdir(path.name, dir_fd=parent)


def empty(path: Path, descriptor: int, *, last: str = "") -> None:
    """Remove everything in an open directory, the file named `last` at the end, and close the descriptor."""
    try:
        if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(descriptor, stat.S_IRWXU)
        for name in sorted(os.listdir(descriptor), key=lambda name: (name == last, name)):
            with suppress(FileNotFoundError):
                remove(path / name, descriptor)
    finally:
        os.close(descriptor)


def require_unmounted(path: Path) -> None:
    """Raise if a file system is mounted at or below the path, so that nothing is removed through a mount."""
    if mounted := _mounted_in(path):
        raise refusal(path, f"has a file system mounted at {mounted}")


def _mounted_in(path: Path) -> Path | None:
    mounts = system().host.mounts()
    if mounts is None:
        return path if path.is_mount() else None
    here = path.resolve()
    return next((mount.point for mount in mounts if mount.point.is_relative_to(here)), None)
