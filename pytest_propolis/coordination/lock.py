"""A semaphore: at most so many nodes have a permit at a time. With one permit it is a lock.

Each node that wants a permit writes ``locks/NAME/NODE`` on its own lease. The first of them, by revision, have one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Self

from ..agent_api.key_value import Entry, Put
from ..errors import CoordinationError
from .limits import DEFAULT_TIMEOUT_S
from .names import require_name

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Semaphore"]

LOCKS: Final = "locks/"


class Semaphore:
    """A semaphore, as one node sees it. A node has one permit at a time."""

    def __init__(self, node: Node, name: str, permits: int) -> None:
        if permits < 1:
            raise CoordinationError(f"semaphore {name!r} has {permits} permits", hint="it has at least one")
        self._node = node
        self._mirror = node.group.mirror
        self._permits = permits
        self.name = require_name("lock", name)
        self._directory = f"{LOCKS}{name}/"
        self._own = self._directory + node.name

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with contextlib.suppress(CoordinationError):
            await self.release()

    @property
    def holders(self) -> list[str]:
        """The nodes that have a permit."""
        return self._order()[: self._permits]

    async def acquire(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Wait for a permit.

        :raises CoordinationError: when the node has one already, or another node wants another number of permits.
        :raises CoordinationTimeout: when that takes too long, naming the holders.
        """
        node, operation = self._node, f"node {self._node.name!r}: acquiring {self.name!r}"
        node.require()
        node.group.require_sound(operation)
        value = str(self._permits).encode()
        if self._mirror.get(self._own) is not None:
            raise CoordinationError(f"{operation}: it has it already, or waits for it")
        entered = False
        try:
            entered = (await node.commit(Put(self._own, value, node.lease), expected={self._own: 0})).done
            if not entered:
                raise CoordinationError(f"{operation}: it has it already, or waits for it")
            self._require_agreement()
            await node.until(
                lambda: node.name in self.holders or None,
                on=(self._directory,),
                timeout_s=timeout_s,
                operation=operation,
                missing=lambda: self.holders,
            )
        except BaseException as error:
            if entered or not isinstance(error, CoordinationError):  # An interrupted request may have been done.
                with contextlib.suppress(CoordinationError):
                    await node.group.commit(expected={self._own: 0})  # What follows is done after that request.
                    await self._delete(await node.group.read(self._own))
            raise

    async def release(self) -> None:
        """Give the permit back, or leave the line. Idempotent; the permit of a later node of the same name stays."""
        await self._delete(self._mirror.get(self._own))

    async def _delete(self, entry: Entry | None) -> None:
        if entry is not None and entry.lease == self._node.lease:
            await self._node.group.commit(deletes=(self._own,), expected={self._own: entry.revision})

    def _order(self) -> list[str]:
        wanting = self._mirror.below(self._directory)
        return sorted(wanting, key=lambda name: wanting[name].revision)

    def _require_agreement(self) -> None:
        for name, entry in self._mirror.below(self._directory).items():
            if int(entry.value) != self._permits:
                raise CoordinationError(
                    f"lock {self.name!r}: node {self._node.name!r} wants {self._permits} permits, "
                    f"and node {name!r} {int(entry.value)}"
                )
