"""Survey of all run directories, of running and dead agents, with their ledgers."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ..errors import AgentError
from .ledger import LEDGER_NAME, read_ledger
from .ledger_text import LedgerContents

__all__ = ["RunSurvey", "run_directories", "survey"]


class RunSurvey(msgspec.Struct, frozen=True):
    """One agent's run directory, as `survey` found it.

    :param contents: its ledger, or None if that cannot be read.
    :param is_alive: whether its agent is running, or not provably dead.
    :param problem: why the ledger cannot be read.
    """

    directory: Path
    contents: LedgerContents | None
    is_alive: bool
    problem: str | None = None


def survey(base: Path) -> tuple[RunSurvey, ...]:
    """Return all run directories below `base` with their ledgers, sorted by name. Nothing is locked or changed.

    ``entry.owner.is_alive()`` tells whether the client that holds an entry is running.
    """
    return tuple(_survey_run(directory) for directory in run_directories(base))


def run_directories(base: Path) -> list[Path]:
    """Return the directories below `base`, sorted by name; empty if it does not exist. Skip symbolic links.

    `Path.glob` raises when another process removes `base` meanwhile.
    """
    try:
        with os.scandir(base) as found:
            return sorted(base.absolute() / item.name for item in found if item.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _survey_run(directory: Path) -> RunSurvey:
    try:
        contents = read_ledger(directory / LEDGER_NAME)
    except (OSError, AgentError) as error:
        return RunSurvey(
            directory, None, is_alive=True, problem=error.message if isinstance(error, AgentError) else str(error)
        )
    return RunSurvey(directory, contents, contents.header.agent.is_alive())
