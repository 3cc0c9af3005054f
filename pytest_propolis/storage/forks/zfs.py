"""Forks on ZFS: one snapshot of the artifact's dataset, and a clone of it for each fork.

The snapshot is named after the artifact's state (path, inode, size, time of modification), so all forks of one
generation share it. It is held while the process that made it lives in the ledger, and carries the project's prefix;
nothing else in the dataset is touched. Commands go through an `Executor`, because the pool may be another machine's.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, Protocol, final

import msgspec

from ...errors import ArtifactError, CapabilityMissing, ConfigError, PropolisError, ResourceExhausted
from ...operating_system.no_space import reports_no_space
from ..programs import Finished, run_program
from .fork import ForkedImage, ForkRequest, checked_snapshot_name

__all__ = ["ZFS", "Executor", "LocalExecutor", "ZfsProvider", "remove_clone", "remove_unused_snapshots"]

PREFIX: Final = "propolis-"
"""What the names of all clones and snapshots of this project begin with."""

BUSY_TIMEOUT_S: Final = 15.0
"""How long a dataset may be busy before its removal fails: a process that just ended may still hold it open."""

DEVICE_TIMEOUT_S: Final = 15.0
"""How long the device of a volume may take to appear: udev makes it."""

_BUSY_RETRY_S: Final = 0.1
_CLONE_ATTEMPTS: Final = 5
_LINES_OF_REASON: Final = 5
_NOT_TO_DESTROY: Final = ("dependent clones", "has children", "could not find any snapshots")
"""What ``zfs destroy`` says of a snapshot that is needed, or gone already."""

_NOT_MOUNTED: Final = (
    "mounting needs root, also where `zfs allow` permits the clone: run the agent as root, or choose another provider"
)
_ZVOL_DIRECTORY: Final = PurePosixPath("/dev/zvol")


class Executor(Protocol):
    """Runs programs on the host that has the pool."""

    async def run(self, argv: Sequence[str]) -> Finished:
        """Run a program to its end.

        :raises OSError: when it cannot be started.
        """

    async def describe(self, path: Path) -> str | None:
        """Return a string that changes when the file at the path is replaced or written; None if there is no file."""


@final
class LocalExecutor:
    """Runs programs on this machine."""

    async def run(self, argv: Sequence[str]) -> Finished:
        return await run_program(argv)

    async def describe(self, path: Path) -> str | None:
        try:
            status = path.stat()
        except OSError:
            return None
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


class _Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The dataset that an image lies in.

    :param relative: the image's path in it; None for a volume.
    """

    name: str
    mountpoint: str | None
    relative: PurePosixPath | None


@final
class ZfsProvider:
    """Clones of a snapshot of the dataset that the image lies in, or of the volume that it is."""

    name = "zfs"
    keeps_format = True

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor or LocalExecutor()

    async def obstacle(self, request: ForkRequest) -> str | None:
        try:
            await self._dataset_of(request.image)
        except PropolisError as error:
            return error.message
        return None

    async def plan(self, request: ForkRequest) -> ForkedImage:
        source = await self._dataset_of(request.image)
        name = PREFIX + "-".join(filter(None, (request.mark, request.target.stem)))
        # A volume has no children: its clones lie beside it.
        clone = f"{source.name if source.relative is not None else source.name.rpartition('/')[0]}/{name}"
        if source.relative is None:
            snapshot, path = await self._volume_snapshot(source.name), _ZVOL_DIRECTORY / clone
        else:
            snapshot = await self._file_snapshot(source, request.image)
            path = PurePosixPath(str(source.mountpoint), name, source.relative)
        return ForkedImage(
            provider=self.name,
            path=Path(path),
            format=request.image_format,
            origin=request.image,
            dataset=clone,
            facts={"dataset": clone, "snapshot": snapshot},
        )

    async def fork(self, request: ForkRequest) -> ForkedImage:
        planned = await self.plan(request)
        clone, snapshot = planned.facts["dataset"], planned.facts["snapshot"]
        await self._clone(snapshot, clone)
        try:
            if planned.path.is_relative_to(_ZVOL_DIRECTORY):
                await self._await_device(planned)
        except BaseException:
            await self._discard(clone, snapshot)
            raise
        return planned

    async def snapshot(self, fork: ForkedImage, name: str) -> None:
        await self._zfs("snapshot", f"{fork.dataset}@{checked_snapshot_name(name)}")

    async def rollback(self, fork: ForkedImage, name: str) -> None:
        names = await self._snapshots(str(fork.dataset))
        if checked_snapshot_name(name) not in names:
            raise ConfigError(f"{fork.dataset} has no snapshot {name!r}", hint=f"it has: {', '.join(names) or 'none'}")
        await self._zfs("rollback", "-r", f"{fork.dataset}@{name}")

    async def remove(self, fork: ForkedImage) -> None:
        await remove_clone(fork.facts, self._executor)

    async def _dataset_of(self, image: Path) -> _Dataset:
        path = PurePosixPath(image)
        if path.is_relative_to(_ZVOL_DIRECTORY):
            return _Dataset(name=str(path.relative_to(_ZVOL_DIRECTORY)), mountpoint=None, relative=None)
        output = await self._zfs(
            "list", "-Hp", "-t", "filesystem", "-o", "name,mountpoint,mounted,readonly", str(image)
        )
        rows = [line.split("\t") for line in output.splitlines() if line]
        if len(rows) != 1 or len(rows[0]) != 4:
            raise ArtifactError(f"zfs list does not name the dataset of {image}: {output!r}")
        name, mountpoint, mounted, readonly = rows[0]
        if mounted != "yes" or not path.is_relative_to(mountpoint):
            raise ArtifactError(
                f"{image} is not below the mount point of its dataset {name} ({mountpoint})",
                hint=f"mount it: zfs mount {name}",
            )
        if readonly == "on":
            raise ArtifactError(
                f"the dataset {name} of {image} is read-only, and clones are mounted in it",
                hint=f"zfs set readonly=off {name}; or, if the pool is, import it again without -o readonly=on",
            )
        return _Dataset(name=name, mountpoint=mountpoint, relative=path.relative_to(mountpoint))

    async def _file_snapshot(self, source: _Dataset, image: Path) -> str:
        """Return the snapshot that all forks of this state of a file share."""
        state = await self._executor.describe(image)
        if state is None:
            raise ArtifactError(f"there is no disk image {image}", hint="check the path, or fetch it again")
        generation = hashlib.sha256(f"{source.relative} {state}".encode()).hexdigest()[:16]
        return f"{source.name}@{PREFIX}{generation}"

    async def _volume_snapshot(self, volume: str) -> str:
        """Return this project's latest snapshot of a volume, or a new name if the volume has been written since.

        What was written last is counted only once it has been synchronized.
        """
        await _run(self._executor, "zpool", "sync", volume.partition("/")[0])
        names = await self._snapshots(volume)
        if names and names[-1].startswith(PREFIX):
            written = await self._zfs("get", "-Hp", "-o", "value", f"written@{names[-1]}", volume)
            if written.strip() == "0":
                return f"{volume}@{names[-1]}"
        return f"{volume}@{PREFIX}{secrets.token_hex(8)}"

    async def _clone(self, snapshot: str, clone: str) -> None:
        """Clone the snapshot, and create it if it does not exist: the last fork may remove it at any time."""
        for _ in range(_CLONE_ATTEMPTS):
            try:
                await self._zfs("clone", snapshot, clone)
            except ArtifactError as error:
                if f"'{snapshot}': dataset does not exist" not in error.message:
                    if "filesystem successfully created" not in error.message:
                        raise
                    await self._discard(clone, snapshot)
                    raise ArtifactError(error.message, hint=_NOT_MOUNTED) from None
            else:
                return
            await self._ensure_snapshot(snapshot)
        raise ArtifactError(f"{snapshot} is removed each time that it is taken", hint="see what else removes snapshots")

    async def _ensure_snapshot(self, snapshot: str) -> None:
        try:
            await self._zfs("snapshot", snapshot)
        except ArtifactError as error:
            if "already exists" not in error.message:  # another fork took it just now
                raise

    async def _await_device(self, fork: ForkedImage) -> None:
        deadline = time.monotonic() + DEVICE_TIMEOUT_S
        while await self._executor.describe(fork.path) is None:
            if time.monotonic() >= deadline:
                raise ArtifactError(
                    f"the clone {fork.dataset} has no device {fork.path}",
                    hint="udev makes it: check that it runs, or choose another provider",
                )
            await asyncio.sleep(_BUSY_RETRY_S)

    async def _snapshots(self, dataset: str) -> list[str]:
        output = await self._zfs("list", "-Hp", "-d", "1", "-t", "snapshot", "-s", "createtxg", "-o", "name", dataset)
        return [line.partition("@")[2] for line in output.splitlines() if line]

    async def _zfs(self, *arguments: str) -> str:
        return await _zfs(self._executor, *arguments)

    async def _discard(self, clone: str, snapshot: str) -> None:
        await _destroy(self._executor, clone)
        await _destroy_unused(self._executor, snapshot)


async def remove_clone(facts: Mapping[str, str], executor: Executor | None = None) -> None:
    """Destroy a clone with its snapshots, and the snapshot that it came from if no other clone needs that.

    What is gone already is fine.

    :param facts: those of its `ForkedImage`.
    :raises ArtifactError: when the dataset stays busy, is not this project's, or its pool is not imported.
    """
    executor = executor or LocalExecutor()
    clone, snapshot = facts["dataset"], facts["snapshot"]
    if not clone.rpartition("/")[2].startswith(PREFIX) or not snapshot.rpartition("@")[2].startswith(PREFIX):
        raise ArtifactError(f"{clone} was not made by this project, and is not destroyed")
    await _destroy(executor, clone)
    await _destroy_unused(executor, snapshot)


async def remove_unused_snapshots(dataset: str, executor: Executor | None = None) -> list[str]:
    """Destroy this project's snapshots of a dataset that have no clones; returns their names."""
    executor = executor or LocalExecutor()
    output = await _zfs(executor, "list", "-Hp", "-d", "1", "-t", "snapshot", "-o", "name,clones", dataset)
    removed = []
    for line in output.splitlines():
        name, _, clones = line.partition("\t")
        if name.partition("@")[2].startswith(PREFIX) and clones in ("", "-") and await _destroy_unused(executor, name):
            removed.append(name)
    return removed


async def _destroy(executor: Executor, clone: str) -> None:
    """Destroy a clone, again while it is busy."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            await _zfs(executor, "destroy", "-r", clone)
        except ArtifactError as error:
            if "does not exist" in error.message:
                await _require_pool(executor, clone)
                return
            if "busy" not in error.message or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_BUSY_RETRY_S)
        else:
            return


async def _require_pool(executor: Executor, clone: str) -> None:
    """
    :raises ArtifactError: when the pool of a clone is not there: then the clone may be.
    """
    pool = clone.partition("/")[0]
    try:
        await _zfs(executor, "list", "-H", "-o", "name", pool)
    except ArtifactError:
        raise ArtifactError(
            f"the pool {pool} of {clone} is not imported, so it is unknown whether the clone still exists",
            hint=f"zpool import {pool}, and run `propolis gc`; if it is gone for good, create one of that name",
        ) from None


async def _destroy_unused(executor: Executor, snapshot: str) -> bool:
    """Destroy a snapshot unless clones need it; ZFS refuses that by itself, so no two processes can disagree."""
    try:
        await _zfs(executor, "destroy", snapshot)
    except ArtifactError as error:
        # The second one: the snapshot is gone already.
        if any(
            reason in error.message for reason in ("dependent clones", "could not find any snapshots", "has children")
        ):
            return False
        raise
    return True


async def _zfs(executor: Executor, *arguments: str) -> str:
    """Run a ZFS command, as `_run` does."""
    return await _run(executor, "zfs", *arguments)


async def _run(executor: Executor, *argv: str) -> str:
    """Run a program of ZFS.

    :raises CapabilityMissing: when there is no ZFS.
    :raises ResourceExhausted: when the pool, or a quota, is full.
    :raises ArtifactError: when it fails otherwise.
    """
    try:
        finished = await executor.run(argv)
    except OSError as error:
        raise CapabilityMissing(
            f"{argv[0]} cannot be run: {error.strerror}", hint="install ZFS, or use another provider"
        ) from None
    if finished.status == 0:
        return finished.output
    # The reason comes first; a list of all clones may follow it.
    said, command = "\n".join(finished.last_lines(1000).splitlines()[:_LINES_OF_REASON]), " ".join(argv)
    if reports_no_space(said):
        raise ResourceExhausted(f"{command}: {said}", hint="free space in the pool: zpool list; zfs list -o space")
    if "permission denied" in said.lower():
        raise ArtifactError(
            f"{command}: {said}",
            hint="as root, delegate it: zfs allow USER clone,create,destroy,mount,snapshot,rollback DATASET",
        )
    if "read-only" in said or "read only" in said:
        raise ArtifactError(f"{command}: {said}", hint="the pool is read-only: import it again without -o readonly=on")
    raise ArtifactError(f"{command}: {said}")


ZFS: Final = ZfsProvider()
