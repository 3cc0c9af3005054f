"""The contract of a key-value store through which nodes coordinate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...agent_api.key_value import Change, Entry, Put

__all__ = ["Backend", "Outcome", "Snapshot"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction.

    :param done: False: an expectation was not met, and nothing was written.
    :param revision: the revision of the transaction; if it was not done, that of the store.
    :param count: how many keys are in the directory that was asked for.
    """

    done: bool
    revision: int
    count: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries below the prefix that is followed, at one moment."""

    revision: int
    entries: Mapping[str, Entry]


class Backend(Protocol):
    """A key-value store with transactions, leases and followers, for one event loop.

    Names that end with ``/`` stand for all keys that begin with them. Every method raises `CoordinationLost` when the
    store cannot be reached or a lease is gone, and `CoordinationError` when it refuses the request otherwise.
    """

    async def commit(
        self,
        *puts: Put,
        deletes: tuple[str, ...] = (),
        expected: Mapping[str, int] | None = None,
        count: str | None = None,
    ) -> Outcome:
        """Do all of a transaction, deletes first, or nothing.

        :param expected: the revision at which each of these keys must have been written last; 0: it must be absent.
        :param count: a directory, which ends with ``/`` and has no directories in it.
        """

    async def read(self, prefix: str) -> Mapping[str, Entry]:
        """Return the entries of a key or below a prefix, as all transactions that are done by now have left them."""

    def follow(self, prefix: str) -> AsyncIterator[Snapshot | tuple[Change, ...]]:
        """Iterate over a snapshot and then the changes that each transaction makes, in order and without gaps.

        Where the changes since the last one are not known, a further snapshot comes instead.
        """

    async def grant(self, ttl_s: float) -> int:
        """Return a new lease, which expires if it is not renewed for this time, and its keys with it."""

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; return False if it has ended."""

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys. No effect on one that has ended."""

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
