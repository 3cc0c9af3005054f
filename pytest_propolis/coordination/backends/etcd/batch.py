"""Transactions that are sent to etcd together, as one transaction of transactions.

etcd evaluates all comparisons before it writes anything, and refuses two writes of one key. So a batch is only of
transactions of which none writes what another compares or writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ....agent_api.key_value import Commit
from ....errors import CoordinationError
from ..backend import Outcome

__all__ = ["Batch", "Pending", "range_end"]

LARGEST_BATCH: Final = 64
LARGEST_BYTES: Final = 256 << 10


@dataclass(slots=True, eq=False)
class Pending:
    """A transaction that is to be sent, and what waits for its answer."""

    request: Commit
    answer: asyncio.Future[Outcome]

    @property
    def size(self) -> int:
        return sum(len(put.value) + len(put.key) for put in self.request.puts)

    def succeed(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Batch:
    """Transactions that may be sent together."""

    def __init__(self) -> None:
        self.members: list[Pending] = []
        self._written: set[str] = set()
        self._deleted: tuple[str, ...] = ()
        """Directories that are deleted as a whole."""
        self._compared: set[str] = set()
        self._size = 0

    def admits(self, pending: Pending) -> bool:
        """Add a transaction if it may be sent with the others; return whether it was added."""
        if self.members and (len(self.members) >= LARGEST_BATCH or self._size + pending.size > LARGEST_BYTES):
            return False
        if self.conflicts(pending.request):
            return False
        self.add(pending)
        return True

    def add(self, pending: Pending) -> None:
        """Add a transaction whatever the others are."""
        request = pending.request
        written, deleted = _writes(request)
        self.members.append(pending)
        self._written |= written
        self._deleted += deleted
        self._compared |= set(request.expected)
        self._size += pending.size

    def fail(self, error: CoordinationError) -> None:
        for pending in self.members:
            if not pending.answer.done():
                pending.answer.set_exception(error)
                pending.answer.exception()  # it may be awaited no more

    def conflicts(self, request: Commit) -> bool:
        """Whether a transaction writes what one of these compares or writes, or compares what one of these writes."""
        written, deleted = _writes(request)
        compared = set(request.expected)
        touched = self._written | self._compared
        return (
            not written.isdisjoint(touched)
            or not compared.isdisjoint(self._written)
            or any(key.startswith(self._deleted) for key in written | compared)
            or any(key.startswith(deleted) for key in touched)
            or any(name.startswith(self._deleted) for name in deleted)
            or any(name.startswith(deleted) for name in self._deleted)
        )

    def body(self, encode: Callable[[str], bytes]) -> dict[str, Any]:
        """Return the request."""
        transactions = [transaction(pending.request, encode) for pending in self.members]
        if len(transactions) == 1:
            return transactions[0]
        return {"success": [{"request_txn": item} for item in transactions]}


def _writes(request: Commit) -> tuple[set[str], tuple[str, ...]]:
    """Return the keys that a transaction writes, and the directories that it deletes as a whole."""
    written = {put.key for put in request.puts} | {name for name in request.deletes if not name.endswith("/")}
    return written, tuple(name for name in request.deletes if name.endswith("/"))


def transaction(request: Commit, encode: Callable[[str], bytes]) -> dict[str, Any]:
    """Return a transaction as etcd has it; the count, if it is asked for, is the last operation."""
    operations: list[dict[str, Any]] = [{"request_delete_range": _named(name, encode)} for name in request.deletes]
    operations += [
        {"request_put": {"key": encode(put.key), "value": put.value, "lease": str(put.lease)}} for put in request.puts
    ]
    if request.count:
        operations.append({"request_range": {**_named(request.count, encode), "count_only": True}})
    compared = [
        {"key": encode(key), "target": "MOD", "mod_revision": str(revision)}
        for key, revision in request.expected.items()
    ]
    return {"compare": compared, "success": operations}


def _named(name: str, encode: Callable[[str], bytes]) -> dict[str, bytes]:
    key = encode(name)
    return {"key": key, "range_end": range_end(key)} if name.endswith("/") else {"key": key}


def range_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with a prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
