"""Entries: what a ledger lists, and whose it is."""

from __future__ import annotations

from typing import Final

import msgspec

from ..agent_api.retention import Kept
from .identity import ProcessIdentity

__all__ = ["AGENT_OWNER", "KEPT_OWNER", "MARK_VARIABLE", "Entry", "Owner", "command_line_mark"]

KEPT_OWNER: Final = "kept"
"""The client whose things are those that an agent keeps for a person."""

AGENT_OWNER: Final = "agent"
"""Owner of what an agent has of its own while it lives."""

MARK_VARIABLE: Final = "PROPOLIS_MARK"
"""The environment variable in which a process carries the id of its ledger entry."""


def command_line_mark(run: str) -> str:
    """Return what the command lines of all QEMUs of a run contain."""
    return f"propolis-{run}-"


class Owner(msgspec.Struct, frozen=True, omit_defaults=True):
    """The client that holds a resource.

    :param client: its name, for people.
    :param process: its process, or None where it is on another host.
    """

    client: str
    process: ProcessIdentity | None = None

    def is_alive(self) -> bool:
        """False only when its process is provably dead."""
        return self.process is None or self.process.is_alive()


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One resource.

    :param id: unguessable; begins with the run's mark. A process that is started for the entry carries it in its
        environment (`MARK_VARIABLE`) or command line, which is how it is found when its pid was never written down.
        It belongs into no path that a person may type: a ``tail`` of such a file would carry it as well.
    :param kind: what sort of thing it is: "process", "directory", "file", "socket", or any other word.
    :param what: which one: "path", "name", or the facts of a `ProcessIdentity`.
    :param owner: the client that holds it.
    :param since: when it was intended, unix time in seconds.
    :param run: the run it belongs to.
    :param is_live: whether it is known to exist; an intent may or may not.
    :param kept: set when it is to survive its owner.
    """

    id: str
    kind: str
    what: dict[str, str]
    owner: Owner
    since: float
    run: str
    is_live: bool = False
    kept: Kept | None = None

    def is_kept(self, *, now: float) -> bool:
        """Whether it is to survive its owner at this time (unix, seconds)."""
        return self.kept is not None and (self.kept.until is None or now < self.kept.until)
