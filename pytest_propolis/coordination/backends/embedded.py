"""The embedded backend: the key-value store that the agent of a run serves."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from ...agent_api.key_value import (
    COORDINATION_PATH,
    Answer,
    Change,
    Commit,
    Entry,
    Follow,
    Grant,
    KeepAlive,
    Notice,
    Put,
    Read,
    Request,
    Revoke,
)
from ...errors import CoordinationError, CoordinationLost
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.transport import open_websocket
from .backend import Outcome, Snapshot

__all__ = ["EmbeddedBackend"]

ANSWER_TIMEOUT_S: Final = 30.0
SIGN_TIMEOUT_S: Final = 5.0
"""How long a sign of life may remain unanswered, at the least; for a lease of a long time, twice that time."""

_decoder: Final = msgspec.msgpack.Decoder(list[Answer | Notice])
_encoder: Final = msgspec.msgpack.Encoder()


class EmbeddedBackend:
    """One connection to a store; it is a `Backend`.

    :param connection: a websocket, which this object closes.
    """

    def __init__(self, connection: ClientConnection, *, where: str) -> None:
        self._connection = connection
        self._where = where
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._feed: deque[Snapshot | tuple[Change, ...]] | None = None
        self._fed = asyncio.Event()
        self._follow_id = 0
        self._outgoing: list[Request] = []
        self._ttls_s: dict[int, float] = {}
        """The times of the leases that were granted over this connection."""
        self._can_send = asyncio.Event()
        self._lost: str | None = None
        self._tasks = (asyncio.create_task(self._receive()), asyncio.create_task(self._send()))

    @classmethod
    async def connect(cls, endpoint: Endpoint, *, token: str = "") -> EmbeddedBackend:
        """
        :param token: what the store requires; empty for an agent's, whose socket only its user may open.
        :raises CoordinationLost: when no store answers there.
        """
        headers = {"authorization": f"Bearer {token}"} if token else None
        try:
            connection = await open_websocket(endpoint, COORDINATION_PATH, {}, headers=headers)
        except InvalidStatus as refusal:
            if refusal.response.status_code != HTTPStatus.UNAUTHORIZED:
                raise CoordinationLost(f"the store at {endpoint} cannot be reached: {refusal}") from None
            raise CoordinationLost(
                f"the store at {endpoint} refuses the token",
                hint="use the address that its `propolis node serve` has printed",
            ) from None
        except (OSError, InvalidHandshake) as error:
            raise CoordinationLost(f"the store at {endpoint} cannot be reached: {error}") from None
        return cls(connection, where=str(endpoint))

    async def commit(
        self,
        *puts: Put,
        deletes: tuple[str, ...] = (),
        expected: Mapping[str, int] | None = None,
        count: str | None = None,
    ) -> Outcome:
        answer = await self._ask(lambda number: Commit(number, puts, deletes, dict(expected or {}), count))
        return Outcome(answer.done, answer.revision, answer.count)

    async def read(self, prefix: str) -> Mapping[str, Entry]:
        return (await self._ask(lambda number: Read(number, prefix))).entries

    async def follow(self, prefix: str) -> AsyncIterator[Snapshot | tuple[Change, ...]]:
        """As `Backend.follow`; once for each connection."""
        assert self._feed is None
        feed = self._feed = deque()
        await self._ask(lambda number: Follow(self._followed_by(number), prefix))
        while True:
            while feed:
                yield feed.popleft()
            if self._lost is not None:
                raise self._lost_error()
            await self._fed.wait()
            self._fed.clear()

    def _followed_by(self, request: int) -> int:
        self._follow_id = request
        return request

    async def grant(self, ttl_s: float) -> int:
        lease = (await self._ask(lambda number: Grant(number, ttl_s))).lease
        self._ttls_s[lease] = ttl_s
        return lease

    async def keep_alive(self, lease: int) -> bool:
        """As `Backend.keep_alive`. A store that does not answer has let the lease expire by now."""
        limit_s = min(max(SIGN_TIMEOUT_S, 2 * self._ttls_s.get(lease, 0.0)), ANSWER_TIMEOUT_S)
        return (await self._ask(lambda number: KeepAlive(number, lease), timeout_s=limit_s)).done

    async def revoke(self, lease: int) -> None:
        self._ttls_s.pop(lease, None)
        await self._ask(lambda number: Revoke(number, lease))

    async def aclose(self) -> None:
        self._end("it was closed")
        await self._connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, request: Callable[[int], Request], *, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """
        :raises CoordinationLost: when the store does not answer in time; it is given up then.
        """
        if self._lost is not None:
            raise self._lost_error()
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._outgoing.append(request(number))
        self._can_send.set()
        try:
            async with asyncio.timeout(timeout_s):
                result: Answer = await answer
        except TimeoutError:
            self._answers.pop(number, None)
            self._end(f"it has not answered for {timeout_s:g} s")
            raise self._lost_error() from None
        finally:
            self._answers.pop(number, None)
        if result.error is not None:
            kind = CoordinationLost if result.is_lost else CoordinationError
            raise kind(f"the store refuses: {result.error}")
        return result

    async def _send(self) -> None:
        try:
            while await self._can_send.wait():
                self._can_send.clear()
                outgoing, self._outgoing = self._outgoing, []
                await self._connection.send(_encoder.encode(outgoing))
        except (OSError, ConnectionClosed) as error:
            self._end(str(error))

    async def _receive(self) -> None:
        reason = "it has closed the connection"
        try:
            async for frame in self._connection:
                assert isinstance(frame, bytes)
                for message in _decoder.decode(frame):
                    self._take(message)
        except (OSError, ConnectionClosed, msgspec.DecodeError) as error:
            reason = str(error)
        finally:
            self._end(reason)

    def _take(self, message: Answer | Notice) -> None:
        if isinstance(message, Notice):
            if self._feed is not None:
                self._feed.append(message.changes)
                self._fed.set()
        elif waiting := self._answers.get(message.id):
            if message.id == self._follow_id and self._feed is not None:
                self._feed.append(Snapshot(message.revision, message.entries))
                self._fed.set()
            if not waiting.done():
                waiting.set_result(message)

    def _end(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost_error())
                answer.exception()  # it may be awaited no more
        self._fed.set()

    def _lost_error(self) -> CoordinationLost:
        return CoordinationLost(f"the connection to the store at {self._where} is lost: {self._lost}")
