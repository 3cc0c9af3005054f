"""Messages between clients and an agent that lingers after its last client."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["LINGER_HEADER", "LingerListed"]

LINGER_HEADER: Final = "x-propolis-linger"
"""How many seconds a client wants the agent to stay after its last client has left, given with its lifeline."""


class LingerListed(msgspec.Struct, frozen=True, kw_only=True):
    """The time for which an agent lingers after its last client.

    :param seconds: as its latest client requested; 0 if it exits with its last client.
    :param until: when it exits, Unix time in seconds; None while it has clients.
    """

    seconds: float
    until: float | None = None
