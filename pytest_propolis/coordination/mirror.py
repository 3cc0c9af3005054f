"""A local copy of the keys below a prefix, kept up to date, on which any number of tasks wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import lru_cache
from typing import TypeVar, cast

from ..agent_api.key_value import Change, Entry
from ..errors import CoordinationLost
from .backends.backend import Backend, Snapshot

__all__ = ["Mirror"]

T = TypeVar("T")

Listener = Callable[[str, Entry | None, Entry | None], None]
"""Called with a key, what it had, and what it has."""


class Mirror:
    """The entries of a group. Keys are without the group's prefix.

    :param prefix: ends with ``/``.
    """

    def __init__(self, backend: Backend, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix
        self._topics: dict[str, set[asyncio.Event]] = {}
        self._started = asyncio.Event()
        self._lost: CoordinationLost | None = None
        self._task: asyncio.Task[None] | None = None
        self._revision = 0
        self.entries: dict[str, Entry] = {}
        self._directories: dict[str, dict[str, Entry]] = {}
        """The entries that lie directly in each directory, by the rest of their keys."""
        self._listeners: dict[str, list[Listener]] = {}
        """What is called for each change in a directory."""

    async def start(self) -> None:
        """Wait for the first snapshot.

        :raises CoordinationLost: when the store cannot be reached.
        """
        self._task = asyncio.create_task(self._follow())
        await self._started.wait()
        self.require()

    async def aclose(self) -> None:
        """End it, and all waits on it. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(CoordinationLost("the group was closed"))

    def require(self) -> None:
        """
        :raises CoordinationLost: when the copy is no longer kept up to date.
        """
        if self._lost is not None:
            raise self._lost.with_context()

    def get(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def revision_of(self, key: str) -> int:
        entry = self.entries.get(key)
        return entry.revision if entry else 0

    def below(self, directory: str) -> dict[str, Entry]:
        """Return the entries that lie directly in a directory, by the rest of their keys."""
        return dict(self._directories.get(directory, {}))

    def count(self, directory: str) -> int:
        """Return how many entries lie directly in a directory."""
        return len(self._directories.get(directory, ()))

    def first(self, directory: str) -> tuple[str, Entry] | None:
        """Return the entry in a directory that has been there for longest."""
        return next(iter(self._directories.get(directory, {}).items()), None)

    async def until(self, condition: Callable[[], T | None], *, on: Iterable[str]) -> T:
        """Wait until a condition returns something else than None, and return that.

        :param on: the keys, and the directories that end with ``/``, on which it depends.
        :raises CoordinationLost: when the copy is no longer kept up to date.
        """
        if (there := condition()) is not None:
            return there
        with self._waiter(on) as changed:
            while (result := condition()) is None:
                self.require()
                await changed.wait()
                changed.clear()
        return result

    async def reach(self, revision: int, *, puts: tuple[str, ...], deletes: tuple[str, ...]) -> None:
        """Wait until the copy has what a transaction has written."""

        def has_it() -> bool | None:
            if self._revision >= revision:
                return True
            return None if puts or any(map(self._has_below, deletes)) else True

        await self.until(has_it, on=(*puts, *deletes))

    def _has_below(self, name: str) -> bool:
        return name in self.entries or name in self._directories

    @contextlib.contextmanager
    def listening(self, directory: str, listener: Listener) -> Iterator[None]:
        """Have a function called for each change of a key that lies directly in a directory."""
        self.listen(directory, listener)
        try:
            yield
        finally:
            self._listeners[directory].remove(listener)

    def listen(self, directory: str, listener: Listener) -> None:
        """As `listening`, as long as this copy is kept."""
        self._listeners.setdefault(directory, []).append(listener)

    def wake(self, topics: Iterable[str]) -> None:
        """Have the conditions that depend on keys or directories evaluated again."""
        waiting = self._topics
        for topic in topics:
            if topic in waiting:
                for changed in waiting[topic]:
                    changed.set()

    @contextlib.contextmanager
    def _waiter(self, on: Iterable[str]) -> Iterator[asyncio.Event]:
        changed, topics = asyncio.Event(), tuple(on)
        for topic in topics:
            self._topics.setdefault(topic, set()).add(changed)
        try:
            yield changed
        finally:
            for topic in topics:
                self._topics[topic].discard(changed)
                if not self._topics[topic]:
                    del self._topics[topic]

    async def _follow(self) -> None:
        news = cast("AsyncGenerator[Snapshot | tuple[Change, ...]]", self._backend.follow(self._prefix))
        try:
            async with aclosing(news):
                async for item in news:
                    if isinstance(item, Snapshot):
                        self._replace(item)
                    else:
                        self._apply(item, item[-1].revision)
        except CoordinationLost as error:
            self._fail(error)
        except Exception as error:
            self._fail(CoordinationLost(f"the store's changes cannot be followed: {type(error).__name__}: {error}"))

    def _replace(self, snapshot: Snapshot) -> None:
        revision, prefix = snapshot.revision, self._prefix
        gone = [Change(prefix + key, revision) for key in self.entries if prefix + key not in snapshot.entries]
        there = (Change(key, entry.revision, entry) for key, entry in snapshot.entries.items())
        self._apply((*gone, *there), revision)
        self._started.set()

    def _apply(self, changes: Iterable[Change], revision: int) -> None:
        """Make all of a transaction's changes, then notify the waits and listeners."""
        length, entries, directories = len(self._prefix), self.entries, self._directories
        done: list[tuple[str, str, Entry | None, Entry | None]] = []
        for change in changes:
            key, entry = change.key[length:], change.entry
            place = key[: key.rfind("/") + 1]
            before = entries.get(key)
            if entry is None:
                if before is None:
                    continue
                del entries[key]
                self._remove(place, key[len(place) :])
            else:
                entries[key] = entry
                if place in directories:
                    directories[place][key[len(place) :]] = entry
                else:
                    directories[place] = {key[len(place) :]: entry}
                if before == entry:
                    continue
            done.append((key, place, before, entry))
        self._revision = revision
        for key, place, before, entry in done:
            self.wake((key,))
            self.wake(_directories(place))
            for listener in tuple(self._listeners.get(place, ())):
                listener(key, before, entry)

    def _remove(self, place: str, name: str) -> None:
        directory = self._directories[place]
        del directory[name]
        if not directory:
            del self._directories[place]

    def _fail(self, error: CoordinationLost) -> None:
        if self._lost is None:
            self._lost = error
        self._started.set()
        self.wake(tuple(self._topics))


@lru_cache(maxsize=1024)
def _directories(place: str) -> tuple[str, ...]:
    """Return a directory and those in which it lies, for the waits on one of them."""
    parts = place.split("/")[:-1]
    return ("", *("/".join(parts[: number + 1]) + "/" for number in range(len(parts))))
