"""The directories of disks: one for each agent, on a file system of files and not of memory.

Each is in its agent's ledger. But the ledger may be gone before it: run directories are in memory on most systems, and
end with the machine or the user's session. So each says itself whose it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..errors import PropolisError
from .identity import ProcessIdentity
from .removal import empty, open_no_link, require_unmounted

__all__ = ["OWNER_NAME", "DiskOwner", "abandoned", "directories_of", "remove_abandoned_disks", "write_owner"]

OWNER_NAME: Final = "owner.json"
STARTING_S: Final = 60.0
"""How long an agent may take from making the directory to writing whose it is."""


class DiskOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a directory of disks is.

    :param agent: the agent's process.
    :param run_directory: where its ledger is.
    """

    agent: ProcessIdentity
    run_directory: str

    @property
    def is_gone(self) -> bool:
        """Whether there is neither an agent nor a ledger that could want the disks."""
        return not self.agent.is_alive() and not Path(self.run_directory).exists()


def write_owner(directory: Path, run_directory: Path) -> None:
    """Say in a new directory of disks that it is this process's.

    :raises OSError: when it cannot be written.
    """
    owner = DiskOwner(agent=ProcessIdentity.current(), run_directory=str(run_directory))
    (directory / OWNER_NAME).write_bytes(msgspec.json.encode(owner))


def directories_of(base: Path, run: str) -> list[Path]:
    """The directories of disks that agents of a run have below `base`."""
    return sorted(base.glob(f"{run}-*"))


def abandoned(base: Path) -> Iterator[Path]:
    """The directories of disks below `base` that belong to this user and to no agent or ledger any more."""
    for directory in sorted(base.glob("*-*")):
        try:
            found = directory.lstat()
        except FileNotFoundError:
            continue
        if directory.is_dir() and not directory.is_symlink() and found.st_uid == os.geteuid():
            owner = _owner(directory)
            is_new = owner is None and time.time() - found.st_mtime < STARTING_S
            if owner.is_gone if owner else not (is_new or any(directory.iterdir())):
                yield directory


def remove_abandoned_disks(base: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove what `abandoned` finds, and return it. What cannot be removed is left."""
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
