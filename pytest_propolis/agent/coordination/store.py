"""The embedded key-value store: transactions, leases and followers, without I/O and without a clock of its own."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from ...agent_api.key_value import (
    KEY_BYTES,
    TOTAL_BYTES,
    TRANSACTION_WRITES,
    VALUE_BYTES,
    Change,
    Commit,
    Entry,
    Put,
)

__all__ = ["KeyValueStore", "LeaseGone", "Refusal"]

LEAST_TTL_S: Final = 0.1
LONGEST_TTL_S: Final = 86400.0

Follower = Callable[[tuple[Change, ...]], None]


class Refusal(Exception):
    """Raised when a request cannot be served, whatever the store contains."""


class LeaseGone(Refusal):
    """Raised when a key is to be attached to a lease that has expired or was revoked."""


@dataclass(slots=True)
class _Lease:
    """
    :param deadline_s: when it expires, by the store's clock.
    """

    ttl_s: float
    deadline_s: float
    keys: set[str] = field(default_factory=set)


class KeyValueStore:
    """Keys, their values, and the leases that they are attached to.

    Every transaction has a revision, greater than that of the one before.

    :param clock: returns seconds, never less than before.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._directories: dict[str, set[str]] = {}
        """The keys directly in each directory."""
        self._bytes = 0
        self._leases: dict[int, _Lease] = {}
        self._deadlines: list[tuple[float, int]] = []
        """A heap of the times at which leases may expire. A renewal changes only the lease's own deadline."""
        self._lease_ids = itertools.count(1)
        self._followers: dict[Follower, str] = {}
        self.revision = 0

    def commit(self, request: Commit) -> tuple[bool, int]:
        """Execute a transaction if its comparisons succeed; return whether it did, and the number of requested keys.

        :raises Refusal: when it cannot be executed at all: it is too large, or one of its leases is gone.
        """
        self._check(request)
        met = all(self._revision_of(key) == revision for key, revision in request.expected.items())
        if met and (request.puts or request.deletes):
            self.revision += 1
            changes = [self._delete(key) for key in self._named(request.deletes)]
            changes += [self._put(put) for put in request.puts]
            self._notify(changes)
        return met, len(self._directories.get(request.count, ())) if request.count else 0

    def read(self, prefix: str) -> dict[str, Entry]:
        if not prefix.endswith("/") and prefix:
            return {prefix: self._entries[prefix]} if prefix in self._entries else {}
        return {key: entry for key, entry in self._entries.items() if key.startswith(prefix)}

    def follow(self, prefix: str, follower: Follower) -> dict[str, Entry]:
        """Return the entries below a prefix; from now on the follower receives each change there."""
        self._followers[follower] = prefix
        return self.read(prefix)

    def unfollow(self, follower: Follower) -> None:
        self._followers.pop(follower, None)

    def grant(self, ttl_s: float) -> int:
        """Return a new lease.

        :raises Refusal: when its time is out of range.
        """
        if not LEAST_TTL_S <= ttl_s <= LONGEST_TTL_S:
            raise Refusal(f"a lease lasts from {LEAST_TTL_S} s to {LONGEST_TTL_S:.0f} s, not {ttl_s} s")
        lease = next(self._lease_ids)
        deadline_s = self._clock() + ttl_s
        self._leases[lease] = _Lease(ttl_s, deadline_s)
        heapq.heappush(self._deadlines, (deadline_s, lease))
        return lease

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; return False if it is gone."""
        if (found := self._leases.get(lease)) is None:
            return False
        found.deadline_s = self._clock() + found.ttl_s
        return True

    def revoke(self, lease: int) -> bool:
        """Revoke a lease, and delete its keys; return False if it is gone already."""
        if (found := self._leases.pop(lease, None)) is None:
            return False
        if found.keys:
            self.revision += 1
            self._notify([self._delete(key) for key in sorted(found.keys)])
        return True

    @property
    def next_deadline_s(self) -> float | None:
        """The earliest time at which `expire` has work to do; None if there are no leases."""
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> None:
        """Expire the leases whose deadline has passed."""
        now_s = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, lease = heapq.heappop(self._deadlines)
            if (found := self._leases.get(lease)) is None:
                continue
            if found.deadline_s <= now_s:
                self.revoke(lease)
            else:
                heapq.heappush(self._deadlines, (found.deadline_s, lease))

    def extend_all(self, seconds: float) -> None:
        """Postpone the expiry of every lease: renewals could not be processed for that long."""
        for lease in self._leases.values():
            lease.deadline_s += seconds

    def _check(self, request: Commit) -> None:
        if len(request.puts) + len(request.deletes) > TRANSACTION_WRITES:
            raise Refusal(f"a transaction has at most {TRANSACTION_WRITES} writes")
        for put in request.puts:
            if len(put.value) > VALUE_BYTES:
                raise Refusal(f"the value of {put.key!r} has {len(put.value)} bytes: {VALUE_BYTES} are the most")
            if not put.key or put.key.endswith("/") or len(put.key.encode()) > KEY_BYTES:
                raise Refusal(f"{put.key[:80]!r} is not a key: it has 1 to {KEY_BYTES} bytes, and no slash at its end")
            if put.lease and put.lease not in self._leases:
                raise LeaseGone(f"lease {put.lease} has expired")
        if self._bytes + sum(len(put.value) for put in request.puts) > TOTAL_BYTES:
            raise Refusal(f"the store is full: it holds {TOTAL_BYTES >> 20} MiB")

    def _revision_of(self, key: str) -> int:
        entry = self._entries.get(key)
        return entry.revision if entry else 0

    def _named(self, deletes: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(key for name in deletes for key in self._below(name)))

    def _below(self, name: str) -> list[str]:
        if not name.endswith("/"):
            return [name] if name in self._entries else []
        return [key for key in self._entries if key.startswith(name)]

    def _put(self, put: Put) -> Change:
        self._forget(put.key)
        entry = self._entries[put.key] = Entry(put.value, self.revision, put.lease)
        self._bytes += len(put.value)
        self._directories.setdefault(_directory(put.key), set()).add(put.key)
        if put.lease:
            self._leases[put.lease].keys.add(put.key)
        return Change(put.key, self.revision, entry)

    def _delete(self, key: str) -> Change:
        self._forget(key)
        directory = self._directories[_directory(key)]
        directory.discard(key)
        if not directory:
            del self._directories[_directory(key)]
        return Change(key, self.revision)

    def _forget(self, key: str) -> None:
        if (entry := self._entries.pop(key, None)) is None:
            return
        self._bytes -= len(entry.value)
        if lease := self._leases.get(entry.lease):
            lease.keys.discard(key)

    def _notify(self, changes: list[Change]) -> None:
        """Pass the changes to the followers; those of the same prefix receive the same object."""
        below: dict[str, tuple[Change, ...]] = {}
        for follower, prefix in list(self._followers.items()):
            if prefix not in below:
                below[prefix] = tuple([change for change in changes if change.key.startswith(prefix)])
            if below[prefix]:
                follower(below[prefix])


def _directory(key: str) -> str:
    return key.rpartition("/")[0] + "/"
