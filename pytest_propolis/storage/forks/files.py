"""Forks that are files beside the store: reflinks, and copies as the last resort. A snapshot is a further file."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, final

from ...errors import ArtifactError, ArtifactMissing, ConfigError, ResourceExhausted
from ...operating_system.no_space import is_no_space
from ...operating_system.registry import system
from .fork import ForkedImage, ForkRequest, checked_snapshot_name

__all__ = ["COPY", "REFLINK", "CopyProvider", "ReflinkProvider", "copy_sparse", "reflink"]

_FICLONE: Final = 0x40049409
"""The ioctl that lets two files share their extents; `fcntl` has it as FICLONE from Python 3.14 on."""

_CHUNK_BYTES: Final = 4 << 20
_CANNOT_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})


class _FileProvider:
    """Common parts of reflinks and copies, which differ only in how they transfer the content."""

    name: str
    keeps_format = True

    async def _transfer(self, source: Path, target: Path) -> None:
        raise NotImplementedError

    async def plan(self, request: ForkRequest) -> ForkedImage:
        if not request.image.is_file():
            raise ArtifactMissing(f"there is no disk image {request.image}", hint="check the path, or fetch it again")
        return ForkedImage(
            provider=self.name, path=request.target, format=request.image_format, origin=request.image.absolute()
        )

    async def fork(self, request: ForkRequest) -> ForkedImage:
        fork = await self.plan(request)
        with _new_file(request.target):
            await self._transfer(request.image, request.target)
        return fork

    async def snapshot(self, fork: ForkedImage, name: str) -> None:
        taken = _snapshots(fork)
        if name in taken:
            raise ConfigError(f"{fork.path} has a snapshot {name!r} already", hint="choose another name")
        # Numbered, because a rollback removes later ones, and two may be made within one tick of the clock.
        number = 1 + max((_number(path) for path in taken.values()), default=0)
        target = fork.path.with_name(f"{fork.path.name}@{checked_snapshot_name(name)}.{number}")
        with _new_file(target):
            await self._transfer(fork.path, target)

    async def rollback(self, fork: ForkedImage, name: str) -> None:
        chosen = _find_snapshot(fork, name)
        part = fork.path.with_name(f".{fork.path.name}.rollback")
        part.unlink(missing_ok=True)
        with _new_file(part):
            await self._transfer(chosen, part)
            part.replace(fork.path)
        for later in _snapshots(fork).values():
            if _number(later) > _number(chosen):
                later.unlink(missing_ok=True)

    async def remove(self, fork: ForkedImage) -> None:
        for path in (*_snapshots(fork).values(), fork.path):
            path.unlink(missing_ok=True)


@final
class ReflinkProvider(_FileProvider):
    """Forks that share their extents with the image until they are written to: btrfs, XFS, bcachefs."""

    name = "reflink"

    async def obstacle(self, request: ForkRequest) -> str | None:
        """Try it, with an empty file: only the file system knows."""
        if not system().host.can_clone_files:
            return f"{system().name} has no call for it"
        probe = request.target.with_name(f".{request.target.name}.probe")
        try:
            with _new_file(probe):
                reflink(request.image, probe)
                probe.unlink()
        except OSError as error:
            return f"{request.target.parent} cannot share extents with {request.image}: {error.strerror}"
        return None

    async def _transfer(self, source: Path, target: Path) -> None:
        with _space_named(target):
            reflink(source, target)


@final
class CopyProvider(_FileProvider):
    """Forks that are copies without the holes: slow, and as large as the data. Every place allows it."""

    name = "copy"

    async def obstacle(self, request: ForkRequest) -> str | None:
        return None

    async def _transfer(self, source: Path, target: Path) -> None:
        with _space_named(target):
            await copy_sparse(source, target)


def reflink(source: Path, target: Path) -> None:
    """Let a file that exists have the content of another one, sharing its extents.

    :raises OSError: when the file system cannot do that.
    """
    with source.open("rb") as origin, target.open("r+b") as clone:
        fcntl.ioctl(clone.fileno(), _FICLONE, origin.fileno())


async def copy_sparse(source: Path, target: Path) -> None:
    """Copy the data of a file into one that exists, in pieces; its holes stay holes."""
    with source.open("rb") as origin, target.open("r+b") as copy:
        size = os.fstat(origin.fileno()).st_size
        os.ftruncate(copy.fileno(), size)
        for begin, end in _extents(origin, size):
            while begin < end:
                data = os.pread(origin.fileno(), min(end - begin, _CHUNK_BYTES), begin)
                if not data:
                    raise ArtifactError(f"{source} became shorter while it was copied", hint="leave it as it is")
                begin += os.pwrite(copy.fileno(), data, begin)
                await asyncio.sleep(0)


def _extents(stream: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Yield the data extents of a file; the whole file if the file system does not report them."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(stream.fileno(), end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(stream.fileno(), begin, os.SEEK_HOLE)
        yield begin, end


@contextmanager
def _new_file(path: Path) -> Iterator[None]:
    """Make an empty private file for the block to fill, and remove it if the block fails."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ArtifactError(
            f"{path} exists, and is not overwritten", hint="remove it, or choose another name"
        ) from None
    os.close(descriptor)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _space_named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_no_space(error):
            raise
        raise ResourceExhausted(
            f"no space left for {target} on the file system of {target.parent}: {error.strerror}",
            hint="free some space there, or choose another directory with --propolis-disk-dir",
        ) from error


def _snapshots(fork: ForkedImage) -> dict[str, Path]:
    """Return the files of a fork's snapshots, by name."""
    pattern = re.compile(re.escape(fork.path.name) + r"@(.+)\.\d+")
    matches = ((path, pattern.fullmatch(path.name)) for path in fork.path.parent.iterdir())
    return {match[1]: path for path, match in matches if match}


def _number(snapshot: Path) -> int:
    return int(snapshot.name.rpartition(".")[2])


def _find_snapshot(fork: ForkedImage, name: str) -> Path:
    snapshots = _snapshots(fork)
    if name not in snapshots:
        raise ConfigError(
            f"{fork.path} has no snapshot {name!r}", hint=f"it has: {', '.join(sorted(snapshots)) or 'none'}"
        )
    return snapshots[name]


REFLINK: Final = ReflinkProvider()
COPY: Final = CopyProvider()
