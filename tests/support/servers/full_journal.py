"""A journal of child processes on a full file system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pytest_propolis.errors import ResourceExhausted
from pytest_propolis.ledger.identity import ProcessIdentity

__all__ = ["FullJournal"]


class FullJournal:
    """A journal whose file system is full from one step on."""

    environment: Mapping[str, str] = {}

    def __init__(self, *, fails: Literal["intend", "live"]) -> None:
        self.fails = fails
        self.process: ProcessIdentity | None = None
        self.is_gone = False

    def intend(self) -> FullJournal:
        if self.fails == "intend":
            raise ResourceExhausted("the ledger is full")
        return self

    def live(self, pid: int) -> None:
        self.process = ProcessIdentity.of(pid)
        if self.fails == "live":
            raise ResourceExhausted("the ledger is full")

    def gone(self) -> None:
        self.is_gone = True
