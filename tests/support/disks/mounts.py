"""File systems that a test mounts: small ones, and ones that lack a feature."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["as_root", "mounted", "tmpfs"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@contextlib.contextmanager
def mounted(place: Path, *command: str) -> Iterator[Path]:
    """Mount a file system at a directory, which is created if missing; skip the test if that fails."""
    place.mkdir(exist_ok=True)
    mounting = subprocess.run([*command, str(place)], capture_output=True, text=True, check=False)
    if mounting.returncode:
        pytest.skip(f"this cannot be mounted here: {mounting.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def tmpfs(options: str) -> tuple[str, ...]:
    """Return the command that mounts a file system in memory."""
    return ("mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs")
