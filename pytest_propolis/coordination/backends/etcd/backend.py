"""etcd as a `Backend`: transactions and leases; `watch` follows what changes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from typing import Final

from ....agent_api.key_value import Change, Commit, Entry, Put
from ....errors import CoordinationError, CoordinationLost
from ..backend import Outcome, Snapshot
from .address import EtcdAddress
from .batch import Batch, Pending, range_end
from .gateway import NO_LEASE, Gateway
from .messages import Granted, KeptAliveLine, RangeAnswer, TransactionAnswer
from .watch import Watch

__all__ = ["EtcdBackend"]

LEAST_TTL_S: Final = 2
"""What etcd makes of any shorter time, with its default election timeout."""

BATCHES_UNDER_WAY: Final = 2
"""While so many are under way, further transactions gather in the next one."""


class EtcdBackend:
    """A cluster of etcd; it is a `Backend`. Making it connects to nothing.

    Transactions that concern each other are done in the order in which they were asked for, also if the caller of an
    earlier one was cancelled. A transaction that met no answer is sent again. If it then finds its expectations not
    met, it counts as done where all that it writes is there.
    """

    def __init__(self, address: EtcdAddress) -> None:
        self._gateway = Gateway(address)
        self._prefix = f"/{address.prefix}/"
        self._pending: list[Pending] = []
        self._sending: dict[asyncio.Task[None], Batch] = {}

    async def commit(
        self,
        *puts: Put,
        deletes: tuple[str, ...] = (),
        expected: Mapping[str, int] | None = None,
        count: str | None = None,
    ) -> Outcome:
        loop = asyncio.get_running_loop()
        pending = Pending(Commit(0, puts, deletes, dict(expected or {}), count), loop.create_future())
        self._pending.append(pending)
        if len(self._pending) == 1:
            loop.call_soon(self._send)
        outcome: Outcome = await pending.answer
        return outcome

    async def read(self, prefix: str) -> Mapping[str, Entry]:
        key = self._encode(prefix)
        body = {"key": key, "range_end": range_end(key)} if prefix.endswith("/") else {"key": key}
        answer = await self._gateway.ask("kv/range", body, RangeAnswer)
        return {self._decode(item.key): Entry(item.value, item.mod_revision, item.lease) for item in answer.kvs}

    def follow(self, prefix: str) -> AsyncIterator[Snapshot | tuple[Change, ...]]:
        return Watch(self._gateway, self._encode(prefix), self._decode).news()

    async def grant(self, ttl_s: float) -> int:
        ttl = max(math.ceil(ttl_s), LEAST_TTL_S)
        return (await self._gateway.ask("lease/grant", {"TTL": str(ttl)}, Granted)).lease

    async def keep_alive(self, lease: int) -> bool:
        answer = await self._gateway.ask("lease/keepalive", {"ID": str(lease)}, KeptAliveLine)
        return answer.result.ttl_s > 0

    async def revoke(self, lease: int) -> None:
        try:
            await self._gateway.ask("lease/revoke", {"ID": str(lease)}, dict)
        except CoordinationError as error:
            if NO_LEASE not in error.message:
                raise

    async def aclose(self) -> None:
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._gateway.aclose()

    def _send(self) -> None:
        while self._pending and len(self._sending) < BATCHES_UNDER_WAY:
            batch = self._next_batch()
            if not batch.members:
                return
            task = asyncio.create_task(self._send_batch(batch))
            self._sending[task] = batch
            task.add_done_callback(self._sent)

    def _next_batch(self) -> Batch:
        batch, rest = Batch(), Batch()
        for pending in self._pending:
            blocking = (*self._sending.values(), rest)
            if any(other.conflicts(pending.request) for other in blocking) or not batch.admits(pending):
                rest.add(pending)
        self._pending = rest.members
        return batch

    def _sent(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._send()

    async def _send_batch(self, batch: Batch) -> None:
        try:
            answer, again = await self._gateway.ask_again("kv/txn", batch.body(self._encode), TransactionAnswer)
            answers = [answer] if len(batch.members) == 1 else [item.response_txn for item in answer.responses]
            for pending, own in zip(batch.members, answers, strict=True):
                outcome = _outcome(pending.request, own or TransactionAnswer(), answer.header.revision)
                if again and not outcome.done:
                    outcome = await self._done_before(pending.request) or outcome
                pending.succeed(outcome)
        except CoordinationError as error:
            if len(batch.members) > 1 and (NO_LEASE in error.message or not isinstance(error, CoordinationLost)):
                await self._send_each(batch)
            else:
                batch.fail(error)
        except asyncio.CancelledError:
            batch.fail(CoordinationLost("the connection to etcd was closed"))
            raise

    async def _send_each(self, batch: Batch) -> None:
        """Send the transactions of a batch that was refused one by one: it need not be the fault of all of them."""
        for pending in batch.members:
            alone = Batch()
            alone.add(pending)
            await self._send_batch(alone)

    async def _done_before(self, request: Commit) -> Outcome | None:
        """Return the outcome of a transaction that was sent twice if the first one was done, by what is there now."""
        there = {key: entry for put in request.puts for key, entry in (await self.read(put.key)).items()}
        written = {put.key: Entry(put.value, 0, put.lease) for put in request.puts}
        revisions = {entry.revision for entry in there.values()}
        if len(revisions) != 1 or written != {key: Entry(item.value, 0, item.lease) for key, item in there.items()}:
            return None
        count = len(await self.read(request.count)) if request.count else 0
        return Outcome(True, revisions.pop(), count)

    def _encode(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _decode(self, key: bytes) -> str:
        return key.decode().removeprefix(self._prefix)


def _outcome(request: Commit, answer: TransactionAnswer, revision: int) -> Outcome:
    if not answer.succeeded:
        return Outcome(False, revision)
    counted = answer.responses[-1].response_range if request.count else None
    return Outcome(True, revision, counted.count if counted else 0)
