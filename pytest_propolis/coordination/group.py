"""A group of nodes that coordinate, as one process sees it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Self, TypeVar

import msgspec

from ..agent_api.key_value import Entry, Put
from ..errors import CoordinationError, CoordinationLost, CoordinationTimeout
from .backends.backend import Backend, Outcome
from .baton import Baton
from .key_values import KeyValues
from .lease_keeper import LeaseKeeper
from .limits import DEFAULT_TIMEOUT_S, GROUP_TTL_S, NODE_TTL_S
from .mirror import Mirror
from .names import require_name
from .node import Node
from .node_info import ENDED, NODES, NodeEnd, NodeInfo
from .poison import POISON_KEY, Poison

__all__ = ["GROUP_VARIABLE", "NODE_VARIABLE", "NodeGroup"]

T = TypeVar("T")

GROUP_KEY: Final = "group"
GROUP_VARIABLE: Final = "PROPOLIS_GROUP"
NODE_VARIABLE: Final = "PROPOLIS_NODE"


class _GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a group's own key has.

    :param lease: the lease of all that outlives single nodes: values, generations of barriers, ends of nodes.
    """

    lease: int
    since: float


class NodeGroup:
    """Nodes, their key-values, barriers, batons and locks. What belongs to a group is apart from all other groups.

    :param keeper: keeps the group's lease alive, where this process has opened the group.
    """

    def __init__(self, backend: Backend, mirror: Mirror, *, name: str, lease: int, keeper: LeaseKeeper | None) -> None:
        self._backend = backend
        self._keeper = keeper
        self._tasks: set[asyncio.Task[None]] = set()
        self._nodes: list[Node] = []
        self.mirror = mirror
        self.name = name
        self.lease = lease
        self.address = ""
        """What a program needs to attach to the group; empty where that is not known."""
        self.kv = KeyValues(self)
        """The key-values of the group."""
        mirror.listen(NODES, self._note)

    @classmethod
    async def open(cls, backend: Backend, name: str, *, ttl_s: float = GROUP_TTL_S) -> Self:
        """Open a group, or attach to the one of that name. It ends when the process that has opened it closes it.

        :param ttl_s: how long what belongs to it survives the process that has opened it.
        """
        key = f"{require_name('group', name)}/{GROUP_KEY}"
        keeper = LeaseKeeper(backend, await backend.grant(ttl_s), ttl_s=ttl_s, on_lost=lambda reason: None)
        record = msgspec.json.encode(_GroupRecord(lease=keeper.lease, since=time.time()))
        outcome = await backend.commit(Put(key, record, keeper.lease), expected={key: 0})
        if outcome.done:
            return await cls._started(backend, name, keeper)
        await keeper.revoke()
        return await cls._started(backend, name, None)

    @classmethod
    async def attach(cls, backend: Backend, name: str) -> Self:
        """Attach to a group that another process has opened.

        :raises CoordinationLost: when there is no such group.
        """
        require_name("group", name)
        return await cls._started(backend, name, None)

    @classmethod
    async def _started(cls, backend: Backend, name: str, keeper: LeaseKeeper | None) -> Self:
        mirror = Mirror(backend, f"{name}/")
        try:
            await mirror.start()
            if (entry := mirror.get(GROUP_KEY)) is None:
                raise CoordinationLost(f"there is no group {name!r}", hint="its run has ended, or has not begun yet")
        except BaseException:
            await mirror.aclose()
            raise
        record = msgspec.json.decode(entry.value, type=_GroupRecord)
        return cls(backend, mirror, name=name, lease=record.lease, keeper=keeper)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Have this process's nodes leave; end the group if this process has opened it. Idempotent."""
        try:
            for node in tuple(self._nodes):
                with contextlib.suppress(CoordinationLost):  # its lease may be gone
                    await node.leave()
            if self._keeper is not None:
                keeper, self._keeper = self._keeper, None
                await keeper.revoke()
        except CoordinationLost:
            pass  # what is left goes with its leases
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self.mirror.aclose()
            if self._keeper is not None:
                await self._keeper.aclose()

    async def join(
        self,
        name: str,
        *,
        address: str = "",
        labels: Iterable[str] = (),
        vital: bool = True,
        ttl_s: float = NODE_TTL_S,
    ) -> Node:
        """Register a node, whose lease this process keeps alive until the node leaves.

        :param address: where other nodes reach it.
        :param vital: whether its failure, or its end without leaving, poisons the group.
        :param ttl_s: how long it may give no sign of life before it counts as vanished.
        :raises CoordinationError: when there is a node of that name.
        """
        info = NodeInfo(address=address, labels=tuple(labels), vital=vital, ttl_s=ttl_s, since=time.time())
        node = await Node.registered(self, require_name("node", name), info)
        self._nodes.append(node)
        return node

    def borrow(self, name: str) -> Node:
        """Return a node that another process has registered, to act in its name.

        :raises CoordinationError: when there is no such node.
        """
        if (entry := self.mirror.get(NODES + require_name("node", name))) is None:
            raise CoordinationError(
                f"group {self.name!r} has no node {name!r}", hint="run the program with `propolis node run`"
            )
        return Node.borrowed(self, name, NodeInfo.decode(entry.value), entry.lease)

    def forget(self, node: Node) -> None:
        """Note that a node of this process has left."""
        if node in self._nodes:
            self._nodes.remove(node)

    def members(self) -> dict[str, NodeInfo]:
        """Return the nodes that are there, by name."""
        return {name: NodeInfo.decode(entry.value) for name, entry in sorted(self.mirror.below(NODES).items())}

    def ended(self) -> dict[str, NodeEnd]:
        """Return how the nodes that have left ended, by name."""
        return {name: NodeEnd.decode(entry.value) for name, entry in sorted(self.mirror.below(ENDED).items())}

    def holder(self, baton: str) -> str | None:
        """Return the node that holds a baton; None while no node does."""
        return Baton.standing(self, baton)[0]

    async def find(self, name: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> NodeInfo:
        """Wait for a node of a name, and return its description."""
        key = NODES + require_name("node", name)
        entry = await self.until(
            lambda: self.mirror.get(key), on=(key,), timeout_s=timeout_s, operation=f"waiting for node {name!r}"
        )
        return NodeInfo.decode(entry.value)

    async def discover(
        self, *labels: str, name: str | None = None, count: int = 1, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> dict[str, NodeInfo]:
        """Wait until there are so many nodes that have all of these labels; return all that do, by name.

        :param name: the only node that counts.
        """
        if name is not None:
            require_name("node", name)

        def found() -> dict[str, NodeInfo] | None:
            there = {
                node: info
                for node, info in self.members().items()
                if name in (None, node) and set(labels) <= set(info.labels)
            }
            return there if len(there) >= count else None

        wanted = f"{count} nodes" if name is None else f"node {name!r}"
        with_labels = f" with the labels {', '.join(labels)}" if labels else ""
        return await self.until(found, on=(NODES,), timeout_s=timeout_s, operation=f"waiting for {wanted}{with_labels}")

    async def poison(self, reason: str, *, node: str = "", output: Iterable[str] = ()) -> None:
        """End every wait of the group, on all nodes, with `Poisoned`. The first reason stays."""
        poison = Poison(node=node, reason=reason, output=tuple(output))
        await self.commit(Put(POISON_KEY, poison.encode(), self.lease), expected={POISON_KEY: 0})

    def environment(self, node: str | None = None) -> dict[str, str]:
        """Return the environment variables with which ``propolis barrier`` and its like take part in the group.

        :param node: the node that the program is; by default it is to register itself.
        """
        variables = {GROUP_VARIABLE: self.address}
        return variables if node is None else {**variables, NODE_VARIABLE: require_name("node", node)}

    @property
    def poisoned(self) -> Poison | None:
        """Why the group is poisoned; None if it is not."""
        entry = self.mirror.get(POISON_KEY)
        return Poison.decode(entry.value) if entry else None

    def require_sound(self, operation: str) -> None:
        """
        :raises Poisoned: when the group is poisoned.
        :raises CoordinationLost: when it has ended.
        """
        self.mirror.require()
        if poison := self.poisoned:
            raise poison.error(operation)
        if self.mirror.get(GROUP_KEY) is None:
            raise CoordinationLost(f"group {self.name!r} has ended", operation=operation)

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
        """Wait until a condition returns something else than None, and return that.

        :param on: the keys and directories on which it depends.
        :param deadline_s: the event loop's time at which the limit ends, if it has begun before this call.
        :param missing: returns which nodes it waits for, for the error.
        :raises CoordinationTimeout: when that takes too long.
        :raises Poisoned: when the group is poisoned.
        :raises CoordinationLost: when the group has ended, or the store cannot be reached.
        """

        def outcome() -> T | None:
            result = condition()
            if result is None:
                self.require_sound(operation)
            return result

        try:
            async with asyncio.timeout(timeout_s) if deadline_s is None else asyncio.timeout_at(deadline_s):
                return await self.mirror.until(outcome, on=(*on, POISON_KEY, GROUP_KEY))
        except TimeoutError:
            names = tuple(missing()) if missing else ()
            raise CoordinationTimeout(
                f"group {self.name!r}: it did not happen in time"
                + (f": missing are {', '.join(names)}" if names else ""),
                missing=names,
                operation=operation,
                waited_s=timeout_s,
            ) from None

    async def commit(
        self,
        *puts: Put,
        deletes: tuple[str, ...] = (),
        expected: Mapping[str, int] | None = None,
        count: str | None = None,
    ) -> Outcome:
        """As `Backend.commit`, with keys of this group. Afterwards the mirror has what was written."""
        prefix = f"{self.name}/"
        outcome = await self._backend.commit(
            *(Put(prefix + put.key, put.value, put.lease) for put in puts),
            deletes=tuple(prefix + key for key in deletes),
            expected={prefix + key: revision for key, revision in (expected or {}).items()},
            count=prefix + count if count else None,
        )
        if outcome.done:
            await self.mirror.reach(outcome.revision, puts=tuple(put.key for put in puts), deletes=deletes)
        return outcome

    async def read(self, key: str) -> Entry | None:
        """Return a key's entry, as all transactions that are done by now have left it."""
        return (await self._backend.read(f"{self.name}/{key}")).get(f"{self.name}/{key}")

    async def read_all(self, directory: str) -> dict[str, Entry]:
        """As `read`, for all keys in a directory, by the rest of their keys."""
        prefix = f"{self.name}/{directory}"
        return {key.removeprefix(prefix): entry for key, entry in (await self._backend.read(prefix)).items()}

    async def lease_for(self, ttl_s: float, on_lost: Callable[[str], None]) -> LeaseKeeper:
        """Return a new lease that is kept alive."""
        return LeaseKeeper(self._backend, await self._backend.grant(ttl_s), ttl_s=ttl_s, on_lost=on_lost)

    def in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine, at the longest until the group is closed; errors of the store are passed over."""
        task = asyncio.create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, key: str, before: Entry | None, after: Entry | None) -> None:
        """Poison the group when a vital node has gone without leaving."""
        if before is None or after is not None or POISON_KEY in self.mirror.entries:
            return
        name = key.removeprefix(NODES)
        info = NodeInfo.decode(before.value)
        if ENDED + name not in self.mirror.entries and GROUP_KEY in self.mirror.entries and info.vital:
            reason = f"has vanished: it gave no sign of life for {info.ttl_s:g} s"
            self.in_background(self.poison(reason, node=name))


async def _quietly(work: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(CoordinationError):
        await work
