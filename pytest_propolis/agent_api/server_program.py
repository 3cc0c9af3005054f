"""A server of the Propolis API that an agent starts as a program of its own, for one VM."""

from __future__ import annotations

import msgspec

__all__ = ["ServerProgram"]


class ServerProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program with the command line of ``propolis-server run``.

    :param path: of the program, absolute, on the agent's host.
    :param start_timeout_s: how long it may take to answer.
    """

    path: str
    start_timeout_s: float
