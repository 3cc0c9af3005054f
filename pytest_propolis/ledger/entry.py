"""Ledger entries and their owners."""

from __future__ import annotations

from typing import Final

import msgspec

from ..agent_api.retention import Kept
from .identity import ProcessIdentity

__all__ = ["AGENT_OWNER", "KEPT_OWNER", "TAG_VARIABLE", "Entry", "Owner", "command_line_tag"]

KEPT_OWNER: Final = "kept"
"""Owner of resources kept for inspection."""

AGENT_OWNER: Final = "agent"
"""Owner of the agent's own resources."""

TAG_VARIABLE: Final = "PROPOLIS_MARK"
"""The environment variable in which a process carries the id of its ledger entry."""


def command_line_tag(run: str) -> str:
    """Return the text that the command line of every QEMU of a run contains."""
    return f"propolis-{run}-"


class Owner(msgspec.Struct, frozen=True, omit_defaults=True):
    """The client that holds a resource.

    :param client: its readable name.
    :param process: its process, or None if it runs on another host.
    """

    client: str
    process: ProcessIdentity | None = None

    def is_alive(self) -> bool:
        """Return False only if its process is provably dead."""
        return self.process is None or self.process.is_alive()


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One resource.

    :param id: unguessable; begins with the run's tag. A process that is started for the entry carries it in its
        environment (`TAG_VARIABLE`) or command line, by which it is found if its pid was never recorded.
        Never put it in a path that a user may type: a ``tail`` of such a file would carry the id as well.
    :param kind: the kind of resource: "process", "directory", "file", "socket", or any other word.
    :param what: identifies the resource: "path", "name", or the facts of a `ProcessIdentity`.
    :param owner: the client that holds it.
    :param since: when the intent was recorded, Unix time in seconds.
    :param run: the run it belongs to.
    :param is_live: whether it is known to exist; an intent may or may not.
    :param kept: set if it is to survive its owner.
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
        """Return whether it outlives its owner at this Unix time, in seconds."""
        return self.kept is not None and (self.kept.until is None or now < self.kept.until)
