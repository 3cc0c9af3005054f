"""QEMU's quorum node over the three replicas of a region: its children are attached, swapped and brought up to date.

Three replicas vote on each read, and a write is done when two have it. A replica that is missing is represented by a
node that fails its requests: it must not vote.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from .session import DownstairsUnreachable, Session
from .vcr import REPLICAS

__all__ = ["Quorum"]

THRESHOLD: Final = 2
CONNECT_TIMEOUT_S: Final = 2
TIMED_OUT: Final = "cancelled by timeout"
_FAILING: Final = ("read", "write", "write-zeroes", "discard")
"""What a missing replica fails. QEMU flushes each node by itself before it migrates, and gives up if one fails."""

WRITE_BLOCKING: Final = "write-blocking"
_EIO: Final = 5
_ON_ERROR: Final = {"on-source-error": "stop", "on-target-error": "stop"}
"""A job that ends by itself while QEMU stops the guest would leave a node above the volume's (QEMU 7.2)."""

_ENDED: Final = frozenset({"concluded", "null"})


class Quorum:
    """The graph of one volume's block nodes in one QEMU.

    Methods raise `MachineError` when QEMU refuses. They must not overlap.

    :param name: of the node that the device uses.
    """

    def __init__(self, name: str, *, size_bytes: int, readonly: bool) -> None:
        self.name = name
        self._size_bytes = size_bytes
        self._readonly = readonly
        self._numbers = itertools.count()
        self._job: str | None = None
        self._job_has_writes = False
        """Whether the guest's writes go through the job."""
        self.placeholders = tuple(f"{name}-missing{number}" for number in range(REPLICAS))
        """The nodes that it begins with, which QEMU alone uses."""

    @property
    def node(self) -> dict[str, Any]:
        """The node that QEMU begins with: three replicas that are missing."""
        return {
            "driver": "quorum",
            "node-name": self.name,
            "read-only": self._readonly,
            "vote-threshold": THRESHOLD,
            "discard": "unmap",
            "children": [self._placeholder(name) for name in self.placeholders],
        }

    async def attach(self, machine: Machine, session: Session) -> str:
        """Connect QEMU to a replica, which takes no part in the volume yet; return the name of its node.

        :raises DownstairsUnreachable: when it does not answer QEMU in time.
        """
        name = f"{self.name}-replica{next(self._numbers)}"
        try:
            await machine.execute(
                "blockdev-add",
                driver="nbd",
                server={"type": "inet", "host": session.host, "port": str(session.region.port)},
                export=session.region.export,
                discard="unmap",
                # A replica that was cut off must not come back by itself: it has missed writes.
                **{
                    "node-name": name,
                    "read-only": self._readonly,
                    "reconnect-delay": 0,
                    "open-timeout": CONNECT_TIMEOUT_S,
                },
            )
        except MachineError as error:
            if TIMED_OUT in str(error):
                raise DownstairsUnreachable(f"{session.address}: {error}") from None
            raise
        return name

    async def add_placeholder(self, machine: Machine) -> str:
        """Make a node that stands for a replica that is missing; return its name."""
        name = f"{self.name}-missing{REPLICAS + next(self._numbers)}"
        await machine.execute("blockdev-add", **self._placeholder(name))
        return name

    async def swap(self, machine: Machine, *, old: str, new: str) -> None:
        """Replace one child with another. Nothing is copied."""
        await machine.execute("x-blockdev-change", parent=self.name, node=new)
        await machine.execute("x-blockdev-change", parent=self.name, child=await self._edge(machine, old))
        await self.detach(machine, old)

    async def detach(self, machine: Machine, node: str) -> None:
        """Remove an unused node. Idempotent."""
        with contextlib.suppress(MachineError):  # QEMU removes by itself those that it began with
            await machine.execute("blockdev-del", **{"node-name": node})

    async def yank(self, machine: Machine, node: str) -> None:
        """Cut the connection to a replica. Its requests fail at once, also where QEMU waits for them."""
        with contextlib.suppress(MachineError):  # the node is gone, or is no connection
            await machine.execute_out_of_band("yank", instances=[{"type": "block-node", "node-name": node}])

    async def can_repair(self, machine: Machine) -> bool:
        """Return whether no node is above the volume's, but the device: then `repair` is possible."""
        graph = await machine.execute("x-debug-query-block-graph")
        kinds = {item["id"]: item["type"] for item in graph["nodes"]}
        own = next(item["id"] for item in graph["nodes"] if item.get("name") == self.name)
        return all(kinds[edge["parent"]] != "block-driver" for edge in graph["edges"] if edge["child"] == own)

    async def give_up_job(self, machine: Machine) -> None:
        """Make the current copy job fail, if there is one."""
        if (job := self._job) is not None:
            with contextlib.suppress(MachineError):  # it has just ended
                async with self._without_writes(machine):
                    await machine.execute("block-job-cancel", device=job, force=True)

    async def repair(self, machine: Machine, *, target: str, replaces: str) -> None:
        """Copy the others' data to a replica while the guest writes, and replace a child with it."""
        options = {"copy-mode": WRITE_BLOCKING, "replaces": replaces}
        async with self._mirror(machine, self.name, target, options) as job:
            await machine.execute("job-complete", id=job)
        await self.detach(machine, replaces)

    async def copy(self, machine: Machine, *, source: str, target: str) -> None:
        """Make a node equal to another one. Neither may be in use."""
        async with self._mirror(machine, source, target, {"copy-mode": "background"}) as job:
            await machine.execute("block-job-cancel", device=job)

    async def reconcile(self, machine: Machine, nodes: Sequence[str]) -> None:
        """Make three replicas equal that may differ in their last writes: each block becomes what two of them have.

        They must not be in use.

        :raises MachineError: also when a block is different in all three.
        """
        vote, sink = f"{self.name}-vote", f"{self.name}-sink"
        options = {"vote-threshold": THRESHOLD, "rewrite-corrupted": True, "node-name": vote}
        await machine.execute("blockdev-add", driver="quorum", children=list(nodes), **options)
        try:
            await machine.execute("blockdev-add", driver="null-co", size=self._size_bytes, **{"node-name": sink})
            await self.copy(machine, source=vote, target=sink)
        finally:
            for node in (sink, vote):
                await self.detach(machine, node)

    @contextlib.asynccontextmanager
    async def _mirror(
        self, machine: Machine, source: str, target: str, options: Mapping[str, Any]
    ) -> AsyncIterator[str]:
        """A job that copies one node to another: the block ends it when both are equal. Nothing is left of it."""
        job = f"{self.name}-job{next(self._numbers)}"
        with machine.events("JOB_STATUS_CHANGE", "BLOCK_JOB_ERROR") as events:

            async def reach(goal: Collection[str], *, whatever_happens: bool = False) -> None:
                while (status := await _status(machine, job)) not in goal and status not in _ENDED:
                    name, data = await machine.next_event(events)
                    if name == "BLOCK_JOB_ERROR" and data["device"] == job and not whatever_happens:
                        raise MachineError(f"replica: {data['operation']} error")

            names = {"job-id": job, "device": source, "target": target, "auto-dismiss": False}
            # Before the job exists: what gives it up meanwhile asks QEMU after this, and QEMU answers in order.
            self._job, self._job_has_writes = job, options["copy-mode"] == WRITE_BLOCKING
            try:
                await machine.execute("blockdev-mirror", sync="full", **{**names, **_ON_ERROR, **options})
                try:
                    await reach({"ready"})
                    if await _status(machine, job) == "ready":
                        yield job
                    await reach(_ENDED)
                except BaseException:
                    async with self._without_writes(machine):
                        await _end(machine, job, partial(reach, _ENDED, whatever_happens=True))
                    raise
            finally:
                self._job = None
            if error := await _end(machine, job, partial(reach, _ENDED, whatever_happens=True)):
                raise MachineError(f"replica: {error}")

    @contextlib.asynccontextmanager
    async def _without_writes(self, machine: Machine) -> AsyncIterator[None]:
        """Stop the guest for the length of the block if its writes go through the job, which is to be cancelled.

        A job that is paused by an error and then cancelled frees memory that writes in progress still use (QEMU 7.2,
        `mirror_run`): the heap is corrupted, and QEMU ends by SIGABRT or SIGSEGV.
        """
        async with machine.standing_still() if self._job_has_writes else contextlib.nullcontext():
            yield

    def _placeholder(self, name: str) -> dict[str, Any]:
        fault = {"event": "none", "errno": _EIO, "once": False, "immediately": False}
        return {
            "driver": "blkdebug",
            "node-name": name,
            "read-only": self._readonly,
            "image": {"driver": "null-co", "size": self._size_bytes},
            "inject-error": [{**fault, "iotype": kind} for kind in _FAILING],
        }

    async def _edge(self, machine: Machine, node: str) -> str:
        """QEMU's name for the place of a child."""
        graph = await machine.execute("x-debug-query-block-graph")
        ids = {item["name"]: item["id"] for item in graph["nodes"] if item.get("name")}
        for edge in graph["edges"]:
            if (edge["parent"], edge["child"]) == (ids[self.name], ids.get(node)):
                return str(edge["name"])
        raise MachineError(f"{node} is not a child of {self.name}")


async def _status(machine: Machine, job: str) -> str:
    jobs = await machine.execute("query-jobs")
    return next((item["status"] for item in jobs if item["id"] == job), "null")


async def _end(machine: Machine, job: str, ended: Callable[[], Awaitable[None]]) -> str | None:
    """End a job in any state, and dismiss it; return its error if it has failed.

    :param ended: waits until it has ended.
    """
    if await _status(machine, job) not in _ENDED:
        with contextlib.suppress(MachineError):  # it has just ended by itself
            await machine.execute("block-job-cancel", device=job, force=True)
        await ended()
    jobs = await machine.execute("query-jobs")
    error = next((item.get("error") for item in jobs if item["id"] == job), None)
    with contextlib.suppress(MachineError):
        await machine.execute("job-dismiss", id=job)
    return error
