"""Standby forks: started ahead of demand, from templates that have been used before."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Final, Literal

from ...engine.templates.template import Template
from ...errors import PropolisError
from ...ledger.writer import LedgerWriter
from ...operating_system.figures import available_mib, idle_s
from .fork_starter import ForkStarter, StartedFork

__all__ = ["Standby"]

MOST_PER_KIND: Final = 4
MOST: Final = 16
QUIET_S: Final = 0.1
"""Leave the CPU to a new claimant's first command before building a spare."""

QUIET_AFTER_MISS_S: Final = 0.5
"""Leave it to a claimant that has to start its own fork, too. A run of one short test is over by then."""

IDLE_SHARE: Final = 0.5
"""Idle share of one processor below which building a standby fork would slow down running tests."""

MOST_FAILURES: Final = 3
"""Failures in a row after which a kind is given up until it is claimed again: a busy machine may fail a start once."""

SPARE_MIB: Final = 1024
"""Below this much available memory, keep no standby forks."""

logger = logging.getLogger(__name__)


class Standby:
    """Keeps standby forks of the latest kinds, built one at a time, and discards them when memory runs short.

    :param writer: creates the ledger writer of one fork, which passes to its claimant.
    :param per_kind: how many per template; ``auto`` to adapt to this machine and build only while it is idle.
    """

    def __init__(
        self, forks: ForkStarter, writer: Callable[[], LedgerWriter], *, per_kind: int | Literal["auto"]
    ) -> None:
        self._forks = forks
        self._make_writer = writer
        self._per_kind = min(os.cpu_count() or 1, MOST_PER_KIND) if per_kind == "auto" else per_kind
        self._ready: defaultdict[str, deque[StartedFork]] = defaultdict(deque)
        self._recent: dict[str, tuple[Template, Path]] = {}
        self._failures: Counter[str] = Counter()
        self._only_idle = per_kind == "auto"
        self._making: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def ready(self) -> int:
        """The number of standby forks."""
        return sum(map(len, self._ready.values()))

    async def claim(self, template: Template, template_directory: Path) -> StartedFork | None:
        """Return a standby fork if there is one, and schedule more from its template."""
        if self._per_kind == 0 or self._closed:
            return None
        if available_mib() < SPARE_MIB:
            await self.discard_all()
            return None
        claimed = await self._take(template.key)
        self._recent.pop(template.key, None)  # the latest kind is the last one
        self._recent[template.key] = (template, template_directory)
        self._failures.pop(template.key, None)
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make(0.0 if claimed else QUIET_AFTER_MISS_S))
        return claimed

    async def close(self) -> None:
        """End all standby forks. Idempotent."""
        self._closed = True
        await self.rest()

    async def rest(self) -> None:
        """End all standby forks, and build no more until the next claim."""
        self._recent.clear()
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        await self.discard_all()

    async def _take(self, key: str) -> StartedFork | None:
        waiting = self._ready[key]
        while waiting:
            started = waiting.popleft()
            if not started.fork.has_ended:
                return started
            await self._forks.discard(started)
        return None

    async def discard_all(self) -> None:
        """End the current standby forks."""
        discarded = [started for waiting in self._ready.values() for started in waiting]
        self._ready.clear()
        for started in discarded:
            await self._forks.discard(started)

    async def _make(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await self._quiet()
        while (key := self._missing_parts()) is not None:
            template, template_directory = self._recent[key]
            await self._make_room(key)
            try:
                started = await self._forks.start(self._make_writer(), template, template_directory, warm_up=True)
            except (PropolisError, OSError) as error:
                logger.warning("a fork of template %s does not stand by: %s", key, error)
                self._failures[key] += 1
                if self._failures[key] == MOST_FAILURES:
                    del self._recent[key]
            else:
                self._failures.pop(key, None)
                self._ready[key].append(started)
            await self._quiet()

    async def _quiet(self) -> None:
        """Pause; in idle-only mode, until the machine has spare CPU time."""
        idle = False
        while not idle:
            before_s = idle_s()
            await asyncio.sleep(QUIET_S)
            idle = not self._only_idle or idle_s() - before_s >= IDLE_SHARE * QUIET_S

    def _missing_parts(self) -> str | None:
        """Return the latest kind of which there are too few, if there is room for one more."""
        if available_mib() < 2 * SPARE_MIB:
            return None
        key = next((key for key in reversed(self._recent) if len(self._ready[key]) < self._per_kind), None)
        return key if key is None or self.ready < MOST or self._older_than(key) else None

    def _older_than(self, key: str) -> list[str]:
        """Return the kinds that were asked for less recently and have forks, the oldest one first."""
        return [older for older in takewhile(lambda other: other != key, self._recent) if self._ready[older]]

    async def _make_room(self, key: str) -> None:
        if self.ready >= MOST and (older := self._older_than(key)):
            await self._forks.discard(self._ready[older[0]].popleft())
