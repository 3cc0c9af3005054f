"""A store without sockets, in the event loop of a test, with random delays of responses and changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping

from pytest_propolis.agent.coordination.store import KeyValueStore, LeaseGone
from pytest_propolis.agent_api.key_value import Change, Commit, Entry, Put
from pytest_propolis.coordination.backends.backend import Outcome, Snapshot
from pytest_propolis.errors import CoordinationLost

__all__ = ["LocalBackend"]


class LocalBackend:
    """One process's connection to a store; it is a `Backend`.

    :param chance: draws each delay, in turns of the event loop; None for no delays.
    """

    def __init__(self, store: KeyValueStore, chance: random.Random | None = None) -> None:
        self._store = store
        self._chance = chance
        self._feed: asyncio.Queue[Snapshot | tuple[Change, ...]] = asyncio.Queue()

    async def commit(
        self,
        *puts: Put,
        deletes: tuple[str, ...] = (),
        expected: Mapping[str, int] | None = None,
        count: str | None = None,
    ) -> Outcome:
        await self._delay()
        try:
            done, counted = self._store.commit(Commit(0, puts, deletes, dict(expected or {}), count))
        except LeaseGone as error:
            raise CoordinationLost(str(error)) from None
        outcome = Outcome(done, self._store.revision, counted)
        await self._delay()
        return outcome

    async def read(self, prefix: str) -> Mapping[str, Entry]:
        await self._delay()
        return self._store.read(prefix)

    async def follow(self, prefix: str) -> AsyncIterator[Snapshot | tuple[Change, ...]]:
        entries = self._store.follow(prefix, self._feed.put_nowait)
        yield Snapshot(self._store.revision, entries)
        try:
            while True:
                news = await self._feed.get()
                await self._delay()
                yield news
        finally:
            self._store.unfollow(self._feed.put_nowait)

    async def grant(self, ttl_s: float) -> int:
        return self._store.grant(ttl_s)

    async def keep_alive(self, lease: int) -> bool:
        return self._store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        self._store.revoke(lease)

    async def aclose(self) -> None:
        pass

    async def _delay(self) -> None:
        if self._chance:
            for _ in range(self._chance.randrange(4)):
                await asyncio.sleep(0)
