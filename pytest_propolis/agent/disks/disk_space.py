"""The directory of guests' disks: on a persistent file system with enough free space."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from ...agent_api.agent_process import AgentConfig
from ...errors import HostError, ResourceExhausted
from ...ledger.disk_directories import OWNER_NAME, write_owner
from ...ledger.entry import AGENT_OWNER, Entry, Owner
from ...ledger.ledger import Ledger
from ...ledger.writer import LedgerWriter
from ...operating_system.no_space import is_no_space
from ...storage.user_directories import disk_directory

__all__ = ["DiskSpace", "disk_base"]

MARGIN_BYTES: Final = 32 << 20
"""The free space required to create a disk: what a guest may write while it boots."""

HINT: Final = "free some space there, or choose another directory with --propolis-disk-dir or PROPOLIS_DISK_DIR"


def disk_base(config: AgentConfig) -> Path:
    """The parent of all agents' disk directories."""
    return Path(config.disk_dir) if config.disk_dir else disk_directory(config.artifact_dir)


class DiskSpace:
    """The agent's disk directory. It is recorded in the ledger and created with the first disk."""

    def __init__(self, config: AgentConfig, ledger: Ledger) -> None:
        self._run_directory = Path(config.directory)
        self._directory = disk_base(config) / self._run_directory.name
        self._writer = LedgerWriter(ledger, Owner(AGENT_OWNER))
        self._entry: Entry | None = None

    def path_of(self, name: str) -> Path:
        """Return the path at which to create a disk, or a directory of disks, of this name.

        :raises ResourceExhausted: when little space is free there, naming the directory.
        :raises HostError: when the directory cannot be made.
        """
        status = os.statvfs(self.directory())
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < MARGIN_BYTES:
            raise ResourceExhausted(
                f"no space left for a disk in {self._directory.parent}: {free_bytes >> 20} MiB are free,"
                f" {MARGIN_BYTES >> 20} MiB are the least",
                hint=HINT,
            )
        return self._directory / name

    def directory(self) -> Path:
        """Return the agent's disk directory; create it if necessary.

        :raises ResourceExhausted: if there is no space for it, naming its parent.
        :raises HostError: if it cannot be created.
        """
        self._make()
        return self._directory

    def close(self) -> None:
        """Remove the directory, which must be empty. Idempotent."""
        entry, self._entry = self._entry, None
        if entry is None:
            return
        with contextlib.suppress(OSError):
            if {path.name for path in self._directory.iterdir()} <= {OWNER_NAME}:
                (self._directory / OWNER_NAME).unlink(missing_ok=True)
                self._directory.rmdir()
                self._writer.gone(entry)

    def _make(self) -> None:
        if self._entry is not None:
            return
        base = self._directory.parent
        try:
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._writer.creating("directory", self._directory) as entry:
                self._directory.mkdir(mode=0o700)
                try:
                    write_owner(self._directory, self._run_directory)
                except BaseException:
                    (self._directory / OWNER_NAME).unlink(missing_ok=True)
                    raise
        except OSError as error:
            kind = ResourceExhausted if is_no_space(error) else HostError
            raise kind(f"disks cannot be made in {base}: {error.strerror}", hint=HINT) from None
        self._entry = entry
