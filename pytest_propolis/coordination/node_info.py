"""A node's description of itself, and how it ended."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from ..errors import CoordinationError

__all__ = ["ENDED", "NODES", "NodeEnd", "NodeInfo"]

T = TypeVar("T")

NODES: Final = "nodes/"
ENDED: Final = "ended/"


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node's description of itself.

    :param address: where other nodes reach it.
    :param labels: words by which other nodes find it.
    :param vital: whether its failure, or its end without leaving, poisons the group.
    :param ttl_s: how long it may give no sign of life before it counts as vanished.
    :param since: when it was registered, in seconds since 1970.
    """

    address: str = ""
    labels: tuple[str, ...] = ()
    vital: bool = True
    ttl_s: float = 5.0
    since: float = 0.0

    @classmethod
    def decode(cls, value: bytes) -> NodeInfo:
        return _decode(value, cls)


class NodeEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a node ended.

    :param status: 0, or why it failed: the exit status of its program.
    """

    status: int = 0
    reason: str = ""

    @classmethod
    def decode(cls, value: bytes) -> NodeEnd:
        return _decode(value, cls)


def _decode(value: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise CoordinationError(f"the store has no {kind.__name__}, but {value[:100]!r}: {error}") from None
