"""Standby: forks that wait for somebody to want them, of the kinds that somebody wanted before."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..engine.templates.template import Template
from ..errors import PropolisError
from ..ledger.writer import LedgerWriter
from .cpu_idle import idle_s
from .fork_starter import ForkStarter, StartedFork
from .memory import available_mib

__all__ = ["Standby"]

MOST_PER_KIND: Final = 4
MOST: Final = 16
QUIET_S: Final = 0.1
"""Who has just claimed a fork is to have the processor to himself until his first command is done."""

IDLE_SHARE: Final = 0.5
"""Of the time of one processor: with less to spare, a fork that is made ahead takes its time from somebody's test."""

SPARE_MIB: Final = 1024
"""With less memory available, nothing stands by."""

logger = logging.getLogger(__name__)


class Standby:
    """Keeps forks standing by, one being made at a time, and lets go of them when memory gets short.

    :param books: makes the books of one fork, which go with it to whoever claims it.
    :param per_kind: how many of each kind; None for as many as are good for this machine, and made while it is idle.
    """

    def __init__(self, forks: ForkStarter, books: Callable[[], LedgerWriter], *, per_kind: int | None) -> None:
        self._forks = forks
        self._books = books
        self._per_kind = min(os.cpu_count() or 1, MOST_PER_KIND) if per_kind is None else per_kind
        self._ready: defaultdict[str, deque[StartedFork]] = defaultdict(deque)
        self._wanted: dict[str, tuple[Template, Path]] = {}
        self._only_idle = per_kind is None
        self._making: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def ready(self) -> int:
        """How many stand by now."""
        return sum(map(len, self._ready.values()))

    async def claim(self, template: Template, place: Path) -> StartedFork | None:
        """Take one that stands by, if there is one, and have more made of its kind."""
        if self._per_kind == 0 or self._closed:
            return None
        if available_mib() < SPARE_MIB:
            await self.let_go()
            return None
        claimed = await self._take(template.key)
        self._wanted[template.key] = (template, place)
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make())
        return claimed

    async def close(self) -> None:
        """End all that stand by. Closing twice is fine."""
        self._closed = True
        await self.rest()

    async def rest(self) -> None:
        """End all that stand by, and make no more until somebody claims one."""
        self._wanted.clear()
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        await self.let_go()

    async def _take(self, key: str) -> StartedFork | None:
        waiting = self._ready[key]
        while waiting:
            started = waiting.popleft()
            if not started.fork.has_ended:
                return started
            await self._forks.discard(started)
        return None

    async def let_go(self) -> None:
        """End all that stand by now."""
        doomed = [started for waiting in self._ready.values() for started in waiting]
        self._ready.clear()
        for started in doomed:
            await self._forks.discard(started)

    async def _make(self) -> None:
        await self._quiet()
        while (key := self._lacking()) is not None:
            template, place = self._wanted[key]
            try:
                started = await self._forks.start(self._books(), template, place, warm_up=True)
            except PropolisError as error:
                logger.warning("nothing stands by of template %s: %s", key, error.message)
                del self._wanted[key]
            else:
                self._ready[key].append(started)
                await self._quiet()

    async def _quiet(self) -> None:
        """Wait a while; if that was asked for, until the machine has a processor to spare."""
        idle = False
        while not idle:
            before_s = idle_s()
            await asyncio.sleep(QUIET_S)
            idle = not self._only_idle or idle_s() - before_s >= IDLE_SHARE * QUIET_S

    def _lacking(self) -> str | None:
        if self.ready >= MOST or available_mib() < 2 * SPARE_MIB:
            return None
        return next((key for key in self._wanted if len(self._ready[key]) < self._per_kind), None)
