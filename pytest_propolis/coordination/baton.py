"""A baton: one node at a time holds it, and passes it on.

``batons/NAME/holder`` lives on its holder's lease; ``batons/NAME/line/NODE`` are those that wait for it, in the order
of their revisions; ``batons/NAME/giver`` names the node that has passed it on, and lives on that node's lease. A holder
that puts the baton down deletes both keys. So when the holder's key is gone and the giver's is there, the holder has
died. Then it is the giver's turn if that waits for it, and otherwise that of the first in line.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Self

from ..agent_api.key_value import Entry, Put
from ..errors import CoordinationError
from .limits import DEFAULT_TIMEOUT_S
from .names import require_name
from .node_info import NODES

if TYPE_CHECKING:
    from .group import NodeGroup
    from .node import Node

__all__ = ["Baton"]

BATONS: Final = "batons/"


class Baton:
    """A baton, as one node sees it. As a context manager it is taken, and passed on to the next in line at the end."""

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._mirror = node.group.mirror
        self.name = require_name("baton", name)
        self._directory = f"{BATONS}{name}/"
        self._holder = self._directory + "holder"
        self._giver = self._directory + "giver"
        self._line = self._directory + "line/"
        self._own_place = self._line + node.name

    async def __aenter__(self) -> Self:
        await self.take()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.holder == self._node.name:
            await self.pass_on()

    @staticmethod
    def standing(group: NodeGroup, name: str) -> tuple[str | None, list[str]]:
        """Return the node that holds a baton, and those that wait for it, as `holder` and `line`."""
        directory = f"{BATONS}{require_name('baton', name)}/"
        waiting = group.mirror.below(f"{directory}line/")
        return _text(group.mirror.get(f"{directory}holder")), sorted(waiting, key=lambda node: waiting[node].revision)

    @property
    def holder(self) -> str | None:
        """The node that holds it; None while no node does."""
        return _text(self._mirror.get(self._holder))

    @property
    def line(self) -> list[str]:
        """The nodes that wait for it, the next one first."""
        return self.standing(self._node.group, self.name)[1]

    async def take(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Wait in line until this node holds the baton; return at once if it does, or if it was passed to it.

        :raises CoordinationTimeout: when that takes too long, naming the holder.
        :raises Poisoned: when another node fails or vanishes.
        """
        node, operation = self._node, f"node {self._node.name!r}: taking baton {self.name!r}"
        node.require()
        node.group.require_sound(operation)
        if self.holder == node.name:
            return
        try:
            if self._mirror.get(self._own_place) is None:
                await node.commit(Put(self._own_place, b"", node.lease), expected={self._own_place: 0})
            deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
            while not await self._claim(operation, timeout_s, deadline_s):
                pass
        except BaseException:
            with contextlib.suppress(CoordinationError):
                await node.commit(deletes=(self._own_place,))
                if self.holder == node.name:  # it was passed here meanwhile
                    await self.pass_on()
            raise

    async def pass_on(
        self, to: str | None = None, *, wait: bool = False, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> None:
        """Pass it on to a node, or to the next in line; put it down if no node is.

        :param wait: whether to wait until this node has it again.
        :raises CoordinationError: when this node does not hold it, or there is no node of that name.
        """
        while not await self._pass(to, wait=wait):
            pass  # Its receiver has left meanwhile.
        if wait:
            await self.take(timeout_s=timeout_s)

    async def _pass(self, to: str | None, *, wait: bool) -> bool:
        """Pass it on; return False if the receiver has left the line, or the group, before that."""
        node = self._node
        node.require()
        held = self._mirror.get(self._holder)
        if _text(held) != node.name or held is None:
            raise CoordinationError(
                f"node {node.name!r} does not hold baton {self.name!r}",
                hint=f"its holder is {self.holder or 'no node'}",
            )
        receiver = self._receiver(to)
        puts, deletes, expected = [], [self._holder, self._giver], {self._holder: held.revision}
        if receiver is not None:
            name, key, entry = receiver
            puts = [Put(self._holder, name.encode(), entry.lease), Put(self._giver, node.name.encode(), node.lease)]
            deletes, expected[key] = [self._line + name], entry.revision
        if wait and (receiver is None or receiver[0] != node.name):  # With the hand-over: the receiver may die at once.
            puts.append(Put(self._own_place, b"", node.lease))
        if (await node.commit(*puts, deletes=tuple(deletes), expected=expected)).done:
            return True
        await node.until(
            lambda: any(self._mirror.revision_of(key) != revision for key, revision in expected.items()) or None,
            on=tuple(expected),
            timeout_s=DEFAULT_TIMEOUT_S,
            operation=f"node {node.name!r}: passing baton {self.name!r} on",
        )
        return False

    async def _claim(self, operation: str, timeout_s: float | None, deadline_s: float | None) -> bool:
        """Wait until this node holds it, or may claim it; return whether it holds it."""
        node = self._node

        def turn() -> str | None:
            if self.holder == node.name:
                return "held"
            return "free" if self.holder is None and self._first() == node.name else None

        on = (self._holder, self._giver, self._line)
        missing = lambda: [self.holder or "its giver"]  # noqa: E731
        limit = {"timeout_s": timeout_s, "deadline_s": deadline_s}
        if await node.until(turn, on=on, operation=operation, missing=missing, **limit) == "free":
            own = Put(self._holder, node.name.encode(), node.lease)
            await node.commit(own, deletes=(self._own_place, self._giver), expected={self._holder: 0})
            return self.holder == node.name
        if self._mirror.get(self._own_place) is not None:
            await node.commit(deletes=(self._own_place,))
        return True

    def _first(self) -> str | None:
        """Return the node whose turn it is when no node holds the baton."""
        line, giver = self.line, _text(self._mirror.get(self._giver))
        return giver if giver in line else next(iter(line), None)

    def _receiver(self, to: str | None) -> tuple[str, str, Entry] | None:
        """Return the node that is to get it, and the key and entry by which it is there; None if no node waits."""
        if to is not None:
            key = NODES + require_name("node", to)
            if (entry := self._mirror.get(key)) is None:
                raise CoordinationError(f"baton {self.name!r}: there is no node {to!r}")
            return to, key, entry
        for name in self.line:
            if name != self._node.name and (entry := self._mirror.get(self._line + name)):
                return name, self._line + name, entry
        return None


def _text(entry: Entry | None) -> str | None:
    return entry.value.decode() if entry else None
