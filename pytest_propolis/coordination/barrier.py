"""A barrier: a named point where nodes wait for each other, again and again.

``barriers/NAME/generation`` says how often it has opened. A node arrives by writing
``barriers/NAME/at/GENERATION/NODE`` on its own lease, on condition that the barrier has not opened meanwhile. One that
knows that all others are there opens the barrier instead, on condition that they still are. Where the last ones arrive
at the same time, the one that makes the number full opens it; and so does the one that arrived first, in case that the
process of the last one ends in between while its node lives on. An arrival that is taken back changes the generation's
key, too. An arrival goes with its node's lease; the arrivals at a barrier that has opened are deleted after all parties
have been notified, so that these need not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..agent_api.key_value import Put
from ..errors import CoordinationError, CoordinationTimeout
from .names import require_name
from .node_info import NODES

if TYPE_CHECKING:
    from .group import NodeGroup
    from .node import Node

__all__ = ["Barrier"]

BARRIERS: Final = "barriers/"
MOST_PARTIES: Final = 10_000
MOST_COMPARED: Final = 60
"""How many arrivals one transaction compares at most: etcd permits 128 operations, those of its batch included."""


class Barrier:
    """One barrier of a group, as this process sees it."""

    def __init__(self, group: NodeGroup, name: str) -> None:
        self._group = group
        self._mirror = group.mirror
        self.name = require_name("barrier", name)
        self._key = f"{BARRIERS}{name}/generation"
        self._awaited = 0
        """The generation at which the node that waits has arrived."""

    @property
    def generation(self) -> int:
        """How often it has opened."""
        entry = self._mirror.get(self._key)
        return int(entry.value) if entry else 0

    @property
    def arrived(self) -> dict[str, int]:
        """The nodes that wait for it to open, and how many parties each of them requires."""
        there = self._mirror.below(self._directory(self.generation + 1))
        return {name: int(entry.value) for name, entry in sorted(there.items())}

    @property
    def missing(self) -> list[str]:
        """The nodes of the group that do not wait for it."""
        arrived = self.arrived
        return [name for name in self._group.members() if name not in arrived]

    async def wait(self, node: Node, parties: int, *, timeout_s: float | None) -> int:
        """Arrive as a node, and wait until it opens; return how often it has opened.

        :raises CoordinationTimeout: naming the nodes that are missing; the node has not arrived then.
        """
        operation = f"node {node.name!r}: barrier {self.name!r} of {parties}"
        if not 1 <= parties <= MOST_PARTIES:
            raise CoordinationError(f"{operation}: a barrier has from 1 to {MOST_PARTIES} parties")
        node.require()
        self._group.require_sound(operation)
        try:
            generation = await self._arrive(node, parties)
            self._require_agreement(node, parties)
            return await self._opened(node, parties, generation, timeout_s=timeout_s, operation=operation)
        except (CoordinationError, asyncio.CancelledError) as error:
            with contextlib.suppress(CoordinationError):
                opened = not await self._withdraw(node)
                if opened and isinstance(error, CoordinationTimeout):
                    return self._awaited
            raise

    async def _arrive(self, node: Node, parties: int) -> int:
        """Arrive, and open the barrier if all others are there; return the generation that the node waits for."""
        counted = 0
        while True:
            before, generation = self._mirror.revision_of(self._key), self.generation + 1
            if 0 < counted < generation:
                return counted  # it has opened with this node
            self._awaited, directory = generation, self._directory(generation)
            if await self._complete(node, parties, before):
                return generation
            arrival = Put(directory + node.name, str(parties).encode(), node.lease)
            outcome = await node.commit(arrival, expected={self._key: before}, count=directory)
            if outcome.done:
                counted = generation
                if outcome.count < parties or await self._open(generation, {self._key: before}):
                    return generation
            await self._changed(before)

    async def _complete(self, node: Node, parties: int, before: int) -> bool:
        """Arrive and open the barrier in one transaction if all others are there; return whether it was done."""
        directory = self._directory(self._awaited)
        if parties > MOST_COMPARED or self._mirror.count(directory) != parties - 1:
            return False
        there = self._mirror.below(directory)
        if node.name in there or any(int(entry.value) != parties for entry in there.values()):
            return False
        node_key = NODES + node.name
        expected = {directory + name: entry.revision for name, entry in there.items()}
        expected |= {self._key: before, node_key: self._mirror.revision_of(node_key)}
        return expected[node_key] > 0 and await self._open(self._awaited, expected)

    async def _opened(
        self, node: Node, parties: int, generation: int, *, timeout_s: float | None, operation: str
    ) -> int:
        """Wait until it opens, and return how often it has; open it as the first one if all have arrived."""
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        directory, before = self._directory(generation), -1

        def outcome() -> int | None:
            """The generation, or 0: this node is to open it."""
            if self.generation >= generation:
                return self.generation
            if not self._is_first(node, directory) or self._mirror.count(directory) < parties:
                return None
            return 0 if self._mirror.revision_of(self._key) != before else None

        while True:
            # The others do not watch the arrivals, of which there may be very many.
            on = (self._key, directory) if self._is_first(node, directory) else (self._key,)
            reached = await node.until(
                outcome,
                on=on,
                timeout_s=timeout_s,
                operation=operation,
                missing=lambda: self.missing or [f"{parties - len(self.arrived)} that have not joined"],
                deadline_s=deadline_s,
            )
            if reached:
                return reached
            before = self._mirror.revision_of(self._key)
            await self._open(generation, {self._key: before})

    def _is_first(self, node: Node, directory: str) -> bool:
        first = self._mirror.first(directory)
        return first is not None and first[0] == node.name

    async def _open(self, generation: int, expected: Mapping[str, int]) -> bool:
        """Open the barrier, unless it has opened or an arrival was taken back meanwhile; return whether it was done."""
        opened = Put(self._key, str(generation).encode(), self._group.lease)
        left = self._directory(generation - 1)  # by a process that ended before it had deleted them
        done = (await self._group.commit(opened, deletes=(left,), expected=expected)).done
        if done:
            self._group.in_background(self._group.commit(deletes=(self._directory(generation),)))
        return done

    async def _changed(self, before: int) -> None:
        await self._mirror.until(lambda: self._mirror.revision_of(self._key) != before or None, on=(self._key,))

    async def _withdraw(self, node: Node) -> bool:
        """Take back an arrival; return False if the barrier has opened."""
        while (reached := self.generation) < self._awaited:
            before = self._mirror.revision_of(self._key)
            arrival = self._directory(self._awaited) + node.name
            # Written again, so that a node which has counted this arrival does not open the barrier.
            same = Put(self._key, str(reached).encode(), self._group.lease)
            if (await self._group.commit(same, deletes=(arrival,), expected={self._key: before})).done:
                return True
            await self._changed(before)
        return False

    def _require_agreement(self, node: Node, parties: int) -> None:
        first = self._mirror.first(self._directory(self._awaited))
        if first is not None and (wanted := int(first[1].value)) != parties:
            raise CoordinationError(
                f"barrier {self.name!r}: node {node.name!r} wants {parties} parties, and node {first[0]!r} {wanted}"
            )

    def _directory(self, generation: int) -> str:
        return f"{BARRIERS}{self.name}/at/{generation}/"
