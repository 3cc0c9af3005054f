"""The reaper's report: what it removed, what it left alone, and what it failed to remove."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from .entry import Entry
from .identity import ProcessIdentity

__all__ = ["Failure", "Report", "Skipped"]


class Failure(msgspec.Struct, frozen=True):
    """A resource that could not be removed, and the reason.

    :param entry: its ledger entry, or None for the run directory itself.
    """

    directory: Path
    entry: Entry | None
    reason: str


class Skipped(msgspec.Struct, frozen=True):
    """A run directory that was left untouched, and the reason."""

    directory: Path
    reason: str


@dataclass(slots=True)
class Report:
    """The actions of the reaper, or those that it would try with `dry_run`.

    :param removed: the removed entries, in order.
    :param strays: killed processes that carried a run's tag but were not listed.
    :param directories: the removed run directories.
    :param kept: entries that are to survive their owner.
    :param failed: resources that could not be removed.
    :param left: runs left untouched: alive, another user's, or unreadable.
    """

    dry_run: bool = False
    removed: list[Entry] = field(default_factory=list)
    strays: list[ProcessIdentity] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
