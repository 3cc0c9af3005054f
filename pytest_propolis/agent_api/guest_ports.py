"""The guest ports that clients and agents both use, and what an agent says at the end of one."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["ERRORS_PORT", "INTERRUPT_PORT", "PORT_COUNT", "SHELL_PORT", "STREAM_PORTS", "PortEnded"]

STREAM_PORTS: Final = range(1, 9)
"""The ports that carry files and the streams of processes, each for one user at a time."""

SHELL_PORT: Final = 9
"""The port of the guest's shell."""

INTERRUPT_PORT: Final = 10
"""The port that interrupts a command of that shell."""

ERRORS_PORT: Final = 11
"""The port of standard error, for commands that have it apart."""

PORT_COUNT: Final = 11


class PortEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of a port has ended, or its guest runs elsewhere: the last message of the port's websocket.

    :param taken: how many of the client's bytes the machine has taken. The rest has reached no guest.
    :param closed_by_guest: whether the machine runs on, and its guest has closed the port: it can be opened again.
    """

    taken: int
    closed_by_guest: bool = False

    @classmethod
    def told_by(cls, text: str | None) -> PortEnded | None:
        """Return the last text of a connection; None if there was none."""
        return None if text is None else msgspec.json.decode(text, type=cls)
