"""Record of the base directories of this user's runs, independent of `XDG_RUNTIME_DIR`.

A shell started by su or cron may have another `XDG_RUNTIME_DIR` than the run whose VMs are kept. Each base directory is
therefore recorded in `$XDG_STATE_HOME/propolis/run-directories`, which does not depend on it: one small file for each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import HostError
from .run_directory import base_directory, require_private_directory

__all__ = ["known_base_directories", "note_base_directory"]


def note_base_directory(base: Path) -> None:
    """Record a base directory for `known_base_directories`. Errors are ignored."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written
        notes = _notes()
        notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = notes / hashlib.sha256(os.fsencode(base)).hexdigest()[:16]
        if not note.exists():
            part = note.with_suffix(f".{os.getpid()}")
            part.write_bytes(os.fsencode(base))
            part.replace(note)
            for directory, its_note in _read(notes):
                if not directory.exists():
                    its_note.unlink(missing_ok=True)


def known_base_directories() -> list[Path]:
    """Return the current base directory of runs, and all recorded ones that still exist.

    Directories that other users can access are skipped.

    :raises HostError: if there is no base directory here, and none is recorded either.
    """
    found = {base: None for base in _noted() if _is_private(base)}
    try:
        return list({base_directory(): None, **found})
    except HostError:
        if not found:
            raise
        return list(found)


def _notes() -> Path:
    # As platformdirs would return it; importing that would cost each run 3 ms.
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    state = given if given.is_absolute() else Path.home() / ".local" / "state"
    return state / "propolis" / "run-directories"


def _noted() -> list[Path]:
    with contextlib.suppress(OSError, RuntimeError, HostError):
        notes = _notes()
        require_private_directory(notes)
        return sorted(directory for directory, _ in _read(notes))
    return []


def _read(notes: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each recorded directory with the path of its record."""
    for note in notes.iterdir():
        with contextlib.suppress(OSError):  # removed meanwhile by another process
            if not note.suffix:
                yield Path(os.fsdecode(note.read_bytes())), note


def _is_private(base: Path) -> bool:
    try:
        require_private_directory(base)
    except (HostError, OSError, ValueError):
        return False
    return True
