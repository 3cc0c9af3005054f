"""Answers of etcd's JSON gateway.

It writes 64-bit numbers as strings, bytes as base64, and leaves out what is zero, false or empty.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "Event",
    "Granted",
    "Header",
    "KeptAlive",
    "KeptAliveLine",
    "KeyValue",
    "RangeAnswer",
    "Token",
    "TransactionAnswer",
    "WatchAnswer",
    "WatchLine",
]


class Header(msgspec.Struct, frozen=True):
    revision: int = 0


_NO_HEADER: Final = Header()


class KeyValue(msgspec.Struct, frozen=True):
    """
    :param version: how often the key was written since it was created; 0 for a deletion.
    """

    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    version: int = 0
    lease: int = 0


class RangeAnswer(msgspec.Struct, frozen=True):
    header: Header = _NO_HEADER
    kvs: tuple[KeyValue, ...] = ()
    count: int = 0


class OperationAnswer(msgspec.Struct, frozen=True):
    """The answer to one operation of a transaction."""

    response_range: RangeAnswer | None = None
    response_txn: TransactionAnswer | None = None


class TransactionAnswer(msgspec.Struct, frozen=True):
    header: Header = _NO_HEADER
    succeeded: bool = False
    responses: tuple[OperationAnswer, ...] = ()


class Granted(msgspec.Struct, frozen=True):
    lease: int = msgspec.field(name="ID", default=0)


class KeptAlive(msgspec.Struct, frozen=True):
    """
    :param ttl_s: 0 for a lease that is gone.
    """

    ttl_s: int = msgspec.field(name="TTL", default=0)


class Token(msgspec.Struct, frozen=True):
    token: str = ""


class Event(msgspec.Struct, frozen=True):
    kv: KeyValue
    type: str = "PUT"


class WatchAnswer(msgspec.Struct, frozen=True):
    """
    :param canceled: the watch has ended, although the stream goes on.
    """

    header: Header = _NO_HEADER
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: tuple[Event, ...] = ()


class WatchLine(msgspec.Struct, frozen=True):
    """One line of the stream of a watch; without a result it is an error."""

    result: WatchAnswer | None = None


class KeptAliveLine(msgspec.Struct, frozen=True):
    result: KeptAlive
