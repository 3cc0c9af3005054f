"""The files in which running runs of this user publish their status: one for each, beside the directories of agents.

They are not among these directories, whose reaper knows only agents. A run removes its file when it ends; the file of a
process that was killed is removed by the next reader.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ...errors import HostError, ResourceExhausted
from ...hosts.run_directory import base_directory, make_private_directory, require_private_directory
from ...ledger.identity import ProcessIdentity
from .snapshot import Snapshot

__all__ = ["LiveFile", "read_live", "remove_dead"]

SUFFIX = ".json"


class LiveFile:
    """The file of this process's run."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._is_possible = True

    def write(self, text: bytes) -> None:
        """Replace its content; readers see the old one or the new one. Where there is no place for it, there is none.

        :raises HostError: when there is no directory that is this user's alone.
        """
        if not self._is_possible:
            return
        try:
            if self._path is None:
                directory = _directory()
                make_private_directory(directory)
                remove_dead()
                self._path = directory / f"{os.getpid()}{SUFFIX}"
            part = self._path.with_suffix(".part")
            part.write_bytes(text)
            part.replace(self._path)
        except (OSError, ResourceExhausted):  # what is there belongs to the VMs
            self._is_possible = False
            with contextlib.suppress(OSError):
                if self._path is not None:
                    self._path.with_suffix(".part").unlink(missing_ok=True)
                self.remove()

    def remove(self) -> None:
        """Remove it. Idempotent."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other runs have files there
                self._path.parent.rmdir()
            self._path = None


def read_live() -> list[Snapshot]:
    """Return the status of each running run of this user on this machine, the oldest first."""
    found = (_read(path) for path in _files())
    running = [snapshot for snapshot in found if snapshot is not None and _is_alive(snapshot)]
    return sorted(running, key=lambda snapshot: snapshot.since)


def remove_dead() -> None:
    """Remove the files of runs whose processes are provably dead."""
    for path in _files():
        snapshot = _read(path)
        if snapshot is not None and not _is_alive(snapshot):
            path.unlink(missing_ok=True)


def _directory() -> Path:
    base = base_directory()
    return base.with_name(f"{base.name}-status")


def _files() -> list[Path]:
    directory = _directory()
    try:
        require_private_directory(directory)
    except (OSError, HostError):
        return []
    return sorted(directory.glob(f"*{SUFFIX}"))


def _read(path: Path) -> Snapshot | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError):  # it has gone, or is that of another version
        return None


def _is_alive(snapshot: Snapshot) -> bool:
    process = ProcessIdentity.from_facts(snapshot.process)
    return process is not None and process.is_alive()
