"""What clients and an agent that stays after its last client say to each other about that."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["LINGER_HEADER", "LingerListed"]

LINGER_HEADER: Final = "x-propolis-linger"
"""How many seconds a client wants the agent to stay after its last client has left, given with its lifeline."""


class LingerListed(msgspec.Struct, frozen=True, kw_only=True):
    """How long an agent stays after its last client.

    :param seconds: what its latest client asked for; 0 if it leaves with its last client.
    :param until: when it leaves, Unix time in seconds; None while it has clients.
    """

    seconds: float
    until: float | None = None
