"""The report of a reaping: what was undone, what was left alone, and what could not be undone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .entry import Entry
from .identity import ProcessIdentity

__all__ = ["Failure", "Report", "Skipped"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that could not be undone, and why.

    :param entry: which one, or None for the run directory itself.
    """

    directory: Path
    entry: Entry | None
    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A run directory that was left alone as a whole, and why."""

    directory: Path
    reason: str


@dataclass(slots=True)
class Report:
    """What the reaper did, or with `dry_run` would try.

    :param removed: entries undone, in that order.
    :param strays: processes that carried a run's mark but were not listed, ended.
    :param directories: run directories removed.
    :param kept: entries that are to survive their owner.
    :param failed: what is still there although it should not be.
    :param left: runs that were not touched: alive, another user's, or unreadable.
    """

    dry_run: bool = False
    removed: list[Entry] = field(default_factory=list)
    strays: list[ProcessIdentity] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)
