"""What is in directories while other processes remove it: `Path.rglob` of Python 3.11 fails where a directory goes."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["paths_below"]


def paths_below(directory: Path) -> list[Path]:
    """Return all files and directories below a directory, sorted; none where there is no such directory."""
    return sorted(Path(parent, name) for parent, *names in os.walk(directory) for name in (*names[0], *names[1]))
