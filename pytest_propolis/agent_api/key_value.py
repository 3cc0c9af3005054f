"""Messages of the key-value store through which nodes coordinate: entries, leases, transactions, changes.

Requests and answers travel as MessagePack in binary frames of one websocket. A frame holds a list of them, so that what
is asked for in one iteration of the event loop costs one frame.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "COORDINATION_PATH",
    "KEY_BYTES",
    "TOTAL_BYTES",
    "TRANSACTION_WRITES",
    "VALUE_BYTES",
    "Answer",
    "Change",
    "Commit",
    "Entry",
    "Follow",
    "Grant",
    "KeepAlive",
    "Notice",
    "Put",
    "Read",
    "Request",
    "Revoke",
]

COORDINATION_PATH: Final = "/coordination"

KEY_BYTES: Final = 512
VALUE_BYTES: Final = 1 << 20
TRANSACTION_WRITES: Final = 100
"""How many writes a transaction has at most; etcd allows 128 operations, comparisons apart."""

TOTAL_BYTES: Final = 256 << 20
"""How much the embedded store holds."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of a key.

    :param revision: the store's revision of its latest write.
    :param lease: the lease that it is bound to; 0 for none.
    """

    value: bytes
    revision: int
    lease: int = 0


class Put(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A write of a transaction."""

    key: str
    value: bytes = b""
    lease: int = 0


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A change of a key.

    :param entry: what it has now; None: it was deleted.
    """

    key: str
    revision: int
    entry: Entry | None = None


class Commit(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A transaction: all of it is done, or nothing.

    :param expected: the revision at which each of these keys must have been written last; 0: it must be absent.
    :param deletes: keys; one that ends with ``/`` stands for all that begin with it.
    :param count: a directory, ending with ``/``: the answer says how many keys it has afterwards.
    """

    id: int
    puts: tuple[Put, ...] = ()
    deletes: tuple[str, ...] = ()
    expected: dict[str, int] = {}
    count: str | None = None


class Read(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A request for all entries whose keys begin with a prefix, or for that of one key.

    :param prefix: a key, or a prefix that ends with ``/``.
    """

    id: int
    prefix: str


class Follow(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A request for all entries below a prefix, and from then on for each change there, for the connection's life."""

    id: int
    prefix: str


class Grant(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A request for a lease.

    :param ttl_s: how long it lasts from its last sign of life.
    """

    id: int
    ttl_s: float


class KeepAlive(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A sign of life for a lease."""

    id: int
    lease: int


class Revoke(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """The end of a lease, and of all keys on it."""

    id: int
    lease: int


Request = Commit | Read | Follow | Grant | KeepAlive | Revoke


class Answer(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """The answer to the request of that id.

    :param revision: the store's revision.
    :param done: False for a transaction whose expectations were not met, and for a lease that is gone.
    :param error: why the request was refused.
    :param is_lost: whether it was refused because a lease is gone.
    """

    id: int
    revision: int
    done: bool = True
    count: int = 0
    lease: int = 0
    entries: dict[str, Entry] = {}
    error: str | None = None
    is_lost: bool = False


class Notice(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Changes that one transaction, or the end of a lease, has made to what a connection follows."""

    changes: tuple[Change, ...]
