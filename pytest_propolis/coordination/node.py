"""A node: a participant of a group, with a lease."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from ..agent_api.key_value import Entry, Put
from ..errors import CoordinationError, CoordinationLost, PropolisError
from .backends.backend import Outcome
from .barrier import Barrier
from .baton import Baton
from .lease_keeper import EXPIRED, LeaseKeeper
from .limits import DEFAULT_TIMEOUT_S
from .lock import Semaphore
from .node_info import ENDED, NODES, NodeEnd, NodeInfo

if TYPE_CHECKING:
    from .group import NodeGroup

__all__ = ["Node"]

T = TypeVar("T")


class Node:
    """A node that this process has registered. As a context manager it leaves at the end, or fails with the error.

    :param keeper: keeps its lease alive.
    """

    def __init__(self, group: NodeGroup, name: str, info: NodeInfo) -> None:
        self._keeper: LeaseKeeper | None = None
        self._borrowed_lease = 0
        self._lost: str | None = None
        self._batons: dict[str, Baton] = {}
        self._barriers: set[str] = set()
        self.group = group
        self.name = name
        self.info = info

    def __repr__(self) -> str:
        return f"<Node {self.name!r}>"

    @classmethod
    async def registered(cls, group: NodeGroup, name: str, info: NodeInfo) -> Self:
        """Register a node.

        :raises CoordinationError: when there is a node of that name.
        """
        node = cls(group, name, info)
        group.require_sound(f"registering node {name!r}")
        keeper = await group.lease_for(info.ttl_s, node._lose)
        key = NODES + name
        try:
            outcome = await group.commit(
                Put(key, msgspec.json.encode(info), keeper.lease), deletes=(ENDED + name,), expected={key: 0}
            )
        except BaseException:
            # It may have been registered all the same, and must not count as vanished. What follows is done after that.
            with contextlib.suppress(CoordinationError):
                await group.commit(expected={key: 0})
                await node._deregister(keeper, NodeEnd(), await group.read(key))
            raise
        if not outcome.done:
            await keeper.revoke()
            raise CoordinationError(
                f"group {group.name!r} has a node {name!r} already",
                hint="give each node its own name; that of a node that has vanished is free when its lease has expired",
            )
        node._keeper = keeper
        return node

    @classmethod
    def borrowed(cls, group: NodeGroup, name: str, info: NodeInfo, lease: int) -> Self:
        """Return a node that another process has registered, and keeps alive."""
        node = cls(group, name, info)
        node._borrowed_lease = lease
        return node

    @property
    def lease(self) -> int:
        """The lease on which its arrivals, batons and locks live."""
        return self._keeper.lease if self._keeper else self._borrowed_lease

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None or not isinstance(error, Exception):
            await self.leave()
        else:
            reason = error.message if isinstance(error, PropolisError) else f"{type(error).__name__}: {error}"
            await self.fail(reason)

    async def leave(self) -> None:
        """Leave the group without a failure. Idempotent."""
        await self._end(NodeEnd())

    async def fail(self, reason: str, *, status: int = 1, output: Iterable[str] = ()) -> None:
        """Leave the group with a failure, which poisons it if the node is vital.

        :param output: the last lines that it wrote.
        """
        await self._end(NodeEnd(status=status, reason=reason), tuple(output))

    async def barrier(self, name: str, parties: int, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> int:
        """Wait until so many nodes have arrived at a barrier; return how often it has opened.

        :raises CoordinationTimeout: naming the nodes that are missing; this node has not arrived then.
        :raises Poisoned: when another node fails or vanishes.
        """
        if name in self._barriers:
            raise CoordinationError(
                f"node {self.name!r} waits at barrier {name!r} already", hint="each party is a node of its own"
            )
        self._barriers.add(name)
        try:
            return await Barrier(self.group, name).wait(self, parties, timeout_s=timeout_s)
        finally:
            self._barriers.discard(name)

    def baton(self, name: str) -> Baton:
        """Return a baton, which one node holds at a time."""
        if name not in self._batons:
            self._batons[name] = Baton(self, name)
        return self._batons[name]

    def lock(self, name: str) -> Semaphore:
        """Return a lock: ``async with node.lock("disk"): …``. It is free again when its holder leaves or vanishes."""
        return self.semaphore(name, 1)

    def semaphore(self, name: str, permits: int) -> Semaphore:
        """Return a semaphore with so many permits, to be entered as a lock."""
        return Semaphore(self, name, permits)

    async def until(
        self,
        condition: Callable[[], T | None],
        *,
        on: tuple[str, ...],
        timeout_s: float | None,
        operation: str,
        missing: Callable[[], Iterable[str]] | None = None,
        deadline_s: float | None = None,
    ) -> T:
        """As `NodeGroup.until`.

        :raises CoordinationLost: also when the node's lease has expired.
        """

        def outcome() -> T | None:
            self.require()
            return condition()

        return await self.group.until(
            outcome,
            on=(*on, NODES + self.name),
            timeout_s=timeout_s,
            operation=operation,
            missing=missing,
            deadline_s=deadline_s,
        )

    async def commit(
        self,
        *puts: Put,
        deletes: tuple[str, ...] = (),
        expected: Mapping[str, int] | None = None,
        count: str | None = None,
    ) -> Outcome:
        """As `NodeGroup.commit`, for keys on this node's lease.

        :raises CoordinationLost: also when the node's lease has expired.
        """
        self.require()
        try:
            return await self.group.commit(*puts, deletes=deletes, expected=expected, count=count)
        except CoordinationLost:
            if self._keeper is not None and not await self._keeper.is_alive():
                self._lose(EXPIRED.format(self.info.ttl_s))
            self.require()
            raise

    def require(self) -> None:
        """
        :raises CoordinationLost: when the node has left, or its lease has expired.
        """
        if self._borrowed_lease:
            entry = self.group.mirror.get(NODES + self.name)
            self._lost = None if entry and entry.lease == self._borrowed_lease else "it has ended"
        if self._lost is not None or not self.lease:
            raise CoordinationLost(f"node {self.name!r} is no longer of the group: {self._lost or 'it has left'}")

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self.group.mirror.wake((NODES + self.name,))

    async def _end(self, end: NodeEnd, output: tuple[str, ...] = ()) -> None:
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        key = NODES + self.name
        self.group.forget(self)
        self.group.mirror.wake((key,))
        try:
            if end.status and self.info.vital:
                await self.group.poison(f"has failed: {end.reason}", node=self.name, output=output)
        finally:
            await self._deregister(keeper, end, self.group.mirror.get(key))

    async def _deregister(self, keeper: LeaseKeeper, end: NodeEnd, entry: Entry | None) -> None:
        """Delete the node's key with a record of its end, unless it is that of another node by now; end its lease."""
        try:
            if entry is not None and entry.lease == keeper.lease:
                record = Put(ENDED + self.name, msgspec.json.encode(end), self.group.lease)
                key = NODES + self.name
                await self.group.commit(record, deletes=(key,), expected={key: entry.revision})
        finally:
            await keeper.revoke()
