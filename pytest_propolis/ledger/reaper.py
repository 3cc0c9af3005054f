"""The reaper: remove the resources that dead agents' ledgers still list.

Each agent runs it at startup, and so does ``propolis gc``. An agent is dead if its process is provably dead **and** its
ledger is unlocked. The reaper leaves every other agent alone, and everything that belongs to another user. Reaping is
idempotent: if a reaper is killed, the next one continues. It blocks, at most `KILL_BOUND_S` seconds per process entry.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..agent_api.agent_process import LOG_NAME
from ..errors import AgentError, PropolisError
from .cleanup import CLEANUPS, Cleanup, DeadRun, end, strays
from .entry import Entry
from .ledger import LEDGER_NAME, Ledger
from .reaper_report import Failure, Report, Skipped
from .removal import empty, open_no_link, require_unmounted
from .survey import run_directories

__all__ = ["reap"]

_STARTING_S: Final = 60.0


def reap(
    base: Path,
    *,
    roots: Sequence[Path] = (),
    cleanups: Mapping[str, Cleanup] | None = None,
    include_kept: bool = False,
    dry_run: bool = False,
) -> Report:
    """Remove what this user's dead agents left below `base`, newest first, and then their run directories.

    Concurrent reapers are safe: one of them cleans up each run, and the others report it as left.

    :param roots: directories outside the run directories in which listed paths may be removed.
    :param cleanups: cleanup functions by kind; default `CLEANUPS`. Entries of other kinds fail.
    :param include_kept: also remove kept resources that have not expired.
    :param dry_run: change nothing and send no signals. The report says what would be tried; it cannot predict refusals.
    """
    report = Report(dry_run=dry_run)
    for directory in run_directories(base):
        if reason := _not_ours(directory):
            report.left.append(Skipped(directory, reason))
            continue
        try:
            with Ledger.adopt(directory / LEDGER_NAME) as ledger:
                _Reaping(ledger, tuple(roots), CLEANUPS if cleanups is None else cleanups, report).run(include_kept)
        except FileNotFoundError:
            _reap_incomplete(directory, report, "it has no ledger")
        except AgentError as error:
            _reap_incomplete(directory, report, error.message)
    return report


class _Reaping:
    """The reaping of one run, whose ledger is locked."""

    def __init__(
        self, ledger: Ledger, roots: tuple[Path, ...], cleanups: Mapping[str, Cleanup], report: Report
    ) -> None:
        self.ledger = ledger
        self.directory = ledger.path.parent
        self.roots = roots
        self.cleanups = cleanups
        self.report = report

    def run(self, include_kept: bool) -> None:
        header = self.ledger.header
        if header.uid != os.geteuid():
            self.report.left.append(Skipped(self.directory, f"its agent ran as uid {header.uid}"))
        elif header.agent.is_alive():
            self.report.left.append(Skipped(self.directory, f"its agent (pid {header.agent.pid}) is not provably dead"))
        else:
            self._undo_all(include_kept)

    def _undo_all(self, include_kept: bool) -> None:
        entries = tuple(self.ledger.entries())
        spared = () if include_kept else _spared(entries, now=time.time())
        run = DeadRun(self.directory, self.ledger.header, entries, spared, self.roots)
        self.report.kept += spared
        outcomes = [self._undo(entry, run) for entry in reversed(entries) if entry not in spared]
        outcomes.append(self._end_strays(run))
        if all(outcomes) and not spared:
            self._remove_directory()

    def _undo(self, entry: Entry, run: DeadRun) -> bool:
        cleanup = self.cleanups.get(entry.kind)
        if cleanup is None:
            return self._failed(entry, f"nothing here knows how to undo a {entry.kind!r}")
        try:
            if not self.report.dry_run:
                cleanup(entry, run)
                self.ledger.gone(entry)
        except (OSError, PropolisError) as error:
            return self._failed(entry, _reason(error))
        self.report.removed.append(entry)
        return True

    def _end_strays(self, run: DeadRun) -> bool:
        try:
            self.report.strays += strays(run) if self.report.dry_run else end(lambda: strays(run))
        except (OSError, PropolisError) as error:
            return self._failed(None, _reason(error))
        return True

    def _remove_directory(self) -> None:
        try:
            if not self.report.dry_run:
                _remove_run_directory(self.directory)
        except (OSError, PropolisError) as error:
            self._failed(None, _reason(error))
        else:
            self.report.directories.append(self.directory)

    def _failed(self, entry: Entry | None, reason: str) -> bool:
        self.report.failed.append(Failure(self.directory, entry, reason))
        return False


def _spared(entries: Sequence[Entry], *, now: float) -> tuple[Entry, ...]:
    """Return the kept entries, and the directories that contain kept resources."""
    kept = [Path(entry.what["path"]) for entry in entries if entry.is_kept(now=now) and "path" in entry.what]

    def holds_kept(entry: Entry) -> bool:
        directory = entry.what.get("path") if entry.kind == "directory" else None
        return directory is not None and any(path.is_relative_to(directory) for path in kept)

    return tuple(entry for entry in entries if entry.is_kept(now=now) or holds_kept(entry))


def _not_ours(directory: Path) -> str | None:
    """Return why the directory cannot be trusted, if so: any user that can write there can forge the ledger."""
    for path in (directory, directory / LEDGER_NAME):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _reason(error)
        if found.st_uid != os.geteuid():
            return f"{path} belongs to uid {found.st_uid}"
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write to {path}"
    return None


def _remove_run_directory(directory: Path) -> None:
    require_unmounted(directory)
    # The ledger goes last: a reaper that is killed here leaves it to the next one.
    empty(directory, open_no_link(directory), last=LEDGER_NAME)
    directory.rmdir()


def _is_incomplete(directory: Path) -> bool:
    # The launcher creates the log before the agent starts.
    if {path.name for path in directory.iterdir()} - {LEDGER_NAME, LOG_NAME}:
        return False
    if time.time() - directory.stat().st_mtime < _STARTING_S:
        return False
    try:
        # Open for writing, because illumos gives an exclusive lock to no other file.
        with (directory / LEDGER_NAME).open("r+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return b"\n" not in ledger.read()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _reap_incomplete(directory: Path, report: Report, reason: str) -> None:
    """Remove the directory of an agent that died before its ledger had a header: it cannot have created anything."""
    try:
        incomplete = _is_incomplete(directory)
        if incomplete and not report.dry_run:
            _remove_run_directory(directory)
    except FileNotFoundError:
        return
    except (OSError, PropolisError) as error:
        report.failed.append(Failure(directory, None, _reason(error)))
    else:
        if incomplete:
            report.directories.append(directory)
        else:
            report.left.append(Skipped(directory, reason))


def _reason(error: OSError | PropolisError) -> str:
    return error.message if isinstance(error, PropolisError) else str(error)
