"""What changes below a prefix in etcd: a snapshot, and the stream of a watch from its revision on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Final

import msgspec

from ....agent_api.key_value import Change, Entry
from ....errors import CoordinationError, CoordinationLost
from ....propolis_api.connection.http import HttpStream
from ..backend import Snapshot
from .batch import range_end
from .gateway import Gateway
from .messages import Event, KeyValue, RangeAnswer, WatchAnswer, WatchLine

__all__ = ["Watch"]

SILENCE_S: Final = 2.0
"""After so long without a line the member is asked: the stream of one that hangs, or serves it no more, is silent."""

CREATION_TIMEOUT_S: Final = 10.0
"""How long a member may take to answer that it watches: it does so at once, or never."""

HTTP_OK: Final = 200

_decoder: Final = msgspec.json.Decoder(WatchLine, strict=False)


class Watch:
    """Follows a prefix, from member to member.

    :param decode: returns the key that etcd's key stands for.
    """

    def __init__(self, gateway: Gateway, prefix: bytes, decode: Callable[[bytes], str]) -> None:
        self._gateway = gateway
        self._decode = decode
        self._range = {"key": prefix, "range_end": range_end(prefix)}
        self._revision = 0
        """Up to which revision everything is known; 0: nothing is."""
        self._count = 0
        """How many keys there are below the prefix at that revision."""
        self._heard = False
        """Whether a line has come since this was looked at last."""

    async def news(self) -> AsyncIterator[Snapshot | tuple[Change, ...]]:
        """
        :raises CoordinationLost: when no member answers.
        """
        while True:
            if not self._revision:
                yield await self._snapshot()
            try:
                async with aclosing(self._changes()) as changes:
                    async for change in changes:
                        yield change
            except OSError:
                await self._probe()

    async def _snapshot(self) -> Snapshot:
        answer = await self._gateway.ask("kv/range", self._range, RangeAnswer)
        self._revision, self._count = answer.header.revision, len(answer.kvs)
        return Snapshot(self._revision, {self._decode(item.key): _entry(item) for item in answer.kvs})

    async def _changes(self) -> AsyncGenerator[tuple[Change, ...]]:
        """Yield the changes that one member reports, until it fails, or the watch has to begin again.

        :raises OSError: when it fails.
        """
        self._gateway.switched.clear()
        request = {**self._range, "start_revision": str(self._revision + 1)}
        stream = self._gateway.stream("watch", msgspec.json.encode({"create_request": request}))
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(CREATION_TIMEOUT_S):
                answer = await stack.enter_async_context(stream)
            if answer.status != HTTP_OK:
                raise ConnectionError(f"HTTP {answer.status}")
            watching = asyncio.create_task(self._close_if_silent(answer))
            try:
                async for line in answer.lines():
                    self._heard = True
                    if (result := _result(line)) is None:
                        self._revision = 0
                        return
                    if result.events:
                        self._revision = result.events[-1].kv.mod_revision
                        self._count += sum(map(_added, result.events))
                        yield tuple([self._change(event) for event in result.events])
            except OSError:
                if watching.done():
                    await watching
                raise
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        raise ConnectionError("the stream has ended")

    async def _close_if_silent(self, answer: HttpStream) -> None:
        """Close the stream of a member that does not answer, or that twice in a row knows changes it has not reported.

        :raises CoordinationLost: when no member answers.
        """
        is_behind = False
        try:
            while not self._gateway.switched.is_set():
                self._heard = False
                await asyncio.sleep(SILENCE_S)
                if self._heard:
                    is_behind = False
                elif await self._probe():
                    if is_behind:
                        return
                    is_behind = True
        finally:
            answer.close()

    async def _probe(self) -> bool:
        """Return whether keys have changed of which nothing is known here. A member that is silent is left for another.

        The answer's count is of all keys in the range, whatever their revision.
        """
        body = {**self._range, "keys_only": True, "limit": "1", "min_mod_revision": str(self._revision + 1)}
        answer = await self._gateway.ask("kv/range", body, RangeAnswer)
        return bool(answer.kvs) or answer.count != self._count

    def _change(self, event: Event) -> Change:
        entry = None if event.type == "DELETE" else _entry(event.kv)
        return Change(self._decode(event.kv.key), event.kv.mod_revision, entry)


def _entry(item: KeyValue) -> Entry:
    return Entry(item.value, item.mod_revision, item.lease)


def _added(event: Event) -> int:
    """Return by how much an event changes the number of keys."""
    return -1 if event.type == "DELETE" else int(event.kv.version == 1)


def _result(text: bytes) -> WatchAnswer | None:
    """Return the content of a line; None if the watch has ended, because its revision is compacted.

    :raises CoordinationError: when the watch is not permitted.
    """
    try:
        result = _decoder.decode(text).result
    except msgspec.DecodeError as error:
        raise CoordinationLost(f"etcd's watch is not understood: {error}: {text[:500]!r}") from None
    if result is not None and result.canceled and result.cancel_reason and not result.compact_revision:
        raise CoordinationError(f"etcd has ended the watch: {result.cancel_reason}")
    return None if result is None or result.canceled else result
