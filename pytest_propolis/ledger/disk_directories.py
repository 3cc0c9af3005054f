"""Disk directories: one per agent, on a persistent file system rather than a tmpfs.

Each is listed in its agent's ledger, but the ledger may disappear first: on most systems run directories are on a tmpfs
and end with the boot or the user's session. Each disk directory therefore records its owner itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..errors import PropolisError
from .identity import ProcessIdentity
from .removal import empty, open_no_link, require_unmounted
from .survey import run_directories

__all__ = ["OWNER_NAME", "DiskOwner", "abandoned", "directories_of", "remove_abandoned_disks", "write_owner"]

OWNER_NAME: Final = "owner.json"
STARTING_S: Final = 60.0
"""How long an agent may take between creating the directory and recording its owner."""


class DiskOwner(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a disk directory.

    :param agent: the agent's process.
    :param run_directory: the directory of the agent's ledger.
    """

    agent: ProcessIdentity
    run_directory: str

    @property
    def is_gone(self) -> bool:
        """Return whether neither the agent nor its ledger exists any more."""
        return not self.agent.is_alive() and not Path(self.run_directory).exists()


def write_owner(directory: Path, run_directory: Path) -> None:
    """Record this process as the owner of a new disk directory.

    :raises OSError: if the record cannot be written.
    """
    owner = DiskOwner(agent=ProcessIdentity.current(), run_directory=str(run_directory))
    (directory / OWNER_NAME).write_bytes(msgspec.json.encode(owner))


def directories_of(base: Path, run: str) -> list[Path]:
    """Return the disk directories below `base` that belong to agents of the run."""
    return [directory for directory in run_directories(base) if directory.name.startswith(f"{run}-")]


def abandoned(base: Path) -> Iterator[Path]:
    """Return this user's disk directories below `base` whose agent and ledger are gone."""
    for directory in run_directories(base):
        with contextlib.suppress(FileNotFoundError):  # its agent has removed it meanwhile
            found = directory.lstat()
            if "-" in directory.name and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                owner = _owner(directory)
                is_new = owner is None and time.time() - found.st_mtime < STARTING_S
                if owner.is_gone if owner else not (is_new or any(directory.iterdir())):
                    yield directory


def remove_abandoned_disks(base: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove the directories that `abandoned` finds and return those removed; skip any that cannot be."""
    removed = []
    for directory in abandoned(base):
        try:
            if not dry_run:
                require_unmounted(directory)
                empty(directory, open_no_link(directory), last=OWNER_NAME)
                directory.rmdir()
        except (OSError, PropolisError):
            continue
        removed.append(directory)
    return removed


def _owner(directory: Path) -> DiskOwner | None:
    try:
        return msgspec.json.decode((directory / OWNER_NAME).read_bytes(), type=DiskOwner)
    except (OSError, msgspec.DecodeError):
        return None
