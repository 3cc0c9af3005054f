"""Copy a VM's disks to the target of a migration while the guest runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from qemu.qmp import EventListener

from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from .disks import copy_timeout_s
from .failure import MigrationFailed
from .relay import Relay
from .stream import StreamListener, short_path

__all__ = ["DiskMirror", "MirroredDisk"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
Reach = Callable[[int], Awaitable[socket.socket]]

STALL_TIMEOUT_S: Final = 10.0
"""How long the target may make no progress. The guest may wait as long: QEMU waits for copies in flight."""

LOOK_INTERVAL_S: Final = 0.5
END_TIMEOUT_S: Final = 10.0

BYTES_PER_S: Final = 0
"""The bandwidth limit of the copying; 0 for no limit."""

HOPELESS: Final = 2
"""A copy that is not ready after this multiple of the disk's size cannot keep up with the guest."""

ENDED: Final = frozenset({"concluded", "null"})


class MirroredDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk to be copied.

    :param key: its backend, which is the name of the target's export.
    :param node: QEMU's block node.
    :param overlay: copy only what is above the image that it is an overlay on.
    """

    key: str
    node: str
    size_bytes: int
    overlay: bool


class _Copy(msgspec.Struct, kw_only=True):
    """A disk being copied. `name` is that of QEMU's job and of the node for the target's disk."""

    name: str
    disk: MirroredDisk
    relay: Relay


class DiskMirror:
    """Keeps the target's disks equal to those of a guest that runs. It holds nothing after `finish` and `close`.

    Methods raise `MigrationFailed` when the target does not accept the contents, and `MachineError` when this side's
    QEMU fails. After that, `close` lets the guest continue unaffected.

    :param directory: a private directory for sockets.
    """

    def __init__(self, machine: Machine, *, directory: Path) -> None:
        self._machine = machine
        self._directory = directory
        self._copies: list[_Copy] = []

    async def start(self, disks: Sequence[MirroredDisk], *, reach: Reach) -> None:
        """Copy the disks, until the copies are in sync with the guest's writes.

        :param reach: connects to the target's NBD server; called with the number of the disk.
        """
        timeout_s = copy_timeout_s(sum(disk.size_bytes for disk in disks))
        try:
            async with asyncio.timeout(timeout_s):
                for number, disk in enumerate(disks):
                    await self._begin(f"copy{number}", disk, await reach(number))
                for copy in self._copies:
                    await self._catch_up(copy)
        except TimeoutError:
            raise MigrationFailed(f"the disks are not copied after {timeout_s:.0f} s") from None

    async def guard(self, work: Awaitable[T]) -> T:
        """Run a QEMU operation that a hung target could block; disconnect such a target."""
        if not self._copies:
            return await work
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait([task], timeout=STALL_TIMEOUT_S)
            if not done:
                await self.cut()
                await asyncio.gather(task, return_exceptions=True)
                raise self._stalled()
            return await task
        finally:
            task.cancel()

    async def finish(self) -> None:
        """Complete the copying, with the guest stopped: the disks are equal and independent then."""
        with self._machine.events("JOB_STATUS_CHANGE") as events:
            for copy in self._copies:
                await self.guard(self._machine.execute("block-job-cancel", device=copy.name))
            for copy in self._copies:
                await self._reach(copy, ENDED, events)
        for copy in self._copies:
            await self._forget(copy)
        await self._drop_relays()

    async def close(self) -> None:
        """Cancel the copying. Idempotent."""
        await self.cut()
        for copy in self._copies:
            try:
                await self._end(copy)
                await self._forget(copy)
            except MachineError as error:  # QEMU has ended
                logger.info("the copying of disk %s is given up: %s", copy.disk.key, error)
        await self._drop_relays()

    async def cut(self) -> None:
        """Close the connections to the target, and leave QEMU as it is."""
        await asyncio.gather(*(copy.relay.close() for copy in self._copies))

    async def _begin(self, name: str, disk: MirroredDisk, far: socket.socket) -> None:
        # A path and not a descriptor, which QEMU would retry by number, whatever file has that number then.
        path = self._directory / f"{name}.sock"
        try:
            relay = Relay(StreamListener(path), far)
        except OSError as error:
            far.close()
            raise MigrationFailed(f"disk backend {disk.key!r} cannot be copied: {path}: {error}") from None
        copy = _Copy(name=name, disk=disk, relay=relay)
        self._copies.append(copy)
        with short_path(path) as address:
            server = {"type": "unix", "path": address}
            node = {"driver": "nbd", "node-name": name, "export": disk.key, "server": server, "discard": "unmap"}
            await self.guard(self._machine.execute("blockdev-add", **node))
        await self._mirror(copy, "background")

    async def _mirror(self, copy: _Copy, mode: str) -> None:
        await self.guard(
            self._machine.execute(
                "blockdev-mirror",
                device=copy.disk.node,
                target=copy.name,
                sync="top" if copy.disk.overlay else "full",
                speed=BYTES_PER_S,
                **{"job-id": copy.name, "copy-mode": mode, "auto-dismiss": False},
            )
        )

    async def _catch_up(self, copy: _Copy) -> None:
        with self._machine.events("JOB_STATUS_CHANGE") as events:
            limit_bytes = HOPELESS * copy.disk.size_bytes
            if await self._reach(copy, {"ready"}, events, limit_bytes=limit_bytes):
                return
            logger.info("disk %s: the guest writes faster than it is copied, and has to wait now", copy.disk.key)
            await self._end(copy)
            await self._machine.execute("job-dismiss", id=copy.name)
            await self._mirror(copy, "write-blocking")
            await self._reach(copy, {"ready"}, events)

    async def _reach(
        self, copy: _Copy, goal: Container[str], events: EventListener, *, limit_bytes: int | None = None
    ) -> bool:
        """Wait until a job is ready, while it makes progress; return False if it exceeds a limit before."""
        loop = asyncio.get_running_loop()
        seen, moved_s = -1, loop.time()
        while (job := await self.guard(self._job(copy)))["status"] not in goal:
            if job["status"] in ENDED:
                break
            if job["current-progress"] != seen:
                seen, moved_s = job["current-progress"], loop.time()
            elif loop.time() - moved_s > STALL_TIMEOUT_S:
                await self.cut()
                raise self._stalled()
            if limit_bytes is not None and seen > limit_bytes:
                return False
            await self._next(events)
        if job["status"] not in goal or "error" in job:
            reason = job.get("error", "the job ended")
            raise MigrationFailed(f"disk backend {copy.disk.key!r} cannot be copied: {reason}")
        return True

    async def _next(self, events: EventListener) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_INTERVAL_S):
                await self._machine.next_event(events)

    async def _job(self, copy: _Copy) -> Mapping[str, Any]:
        jobs = await self._machine.execute("query-jobs")
        return next((job for job in jobs if job["id"] == copy.name), {"status": "null"})

    async def _end(self, copy: _Copy) -> None:
        """Cancel a job, if it exists."""
        with self._machine.events("JOB_STATUS_CHANGE") as events:
            if (await self._job(copy))["status"] not in ENDED:
                with contextlib.suppress(MachineError):  # it has just ended by itself, which is handled next
                    await self._machine.execute("block-job-cancel", device=copy.name, force=True)
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    while (await self._job(copy))["status"] not in ENDED:
                        await self._next(events)
            except TimeoutError:
                raise MachineError(f"QEMU has not ended the copying of a disk for {END_TIMEOUT_S:.0f} s") from None

    async def _forget(self, copy: _Copy) -> None:
        """Remove a job that has ended, and its node, if they exist."""
        if (await self._job(copy))["status"] == "concluded":
            await self._machine.execute("job-dismiss", id=copy.name)
        nodes = await self._machine.execute("query-named-block-nodes", flat=True)
        if any(node["node-name"] == copy.name for node in nodes):
            await self._machine.execute("blockdev-del", **{"node-name": copy.name})

    async def _drop_relays(self) -> None:
        await self.cut()
        self._copies.clear()

    def _stalled(self) -> MigrationFailed:
        return MigrationFailed(f"the target has taken nothing of the disks for {STALL_TIMEOUT_S:.0f} s")
