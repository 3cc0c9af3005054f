"""File systems that a test mounts, and loop devices that it makes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["as_root", "loop_device", "mounted", "tmpfs"]

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


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """Make a loop device over a file; skip the test if that fails."""
    if os.geteuid() != 0:  # losetup is not on an ordinary user's PATH either
        pytest.skip("only root can make a loop device")
    command = ["losetup", "--find", "--show", str(image)]
    making = subprocess.run(command, capture_output=True, text=True, check=False)
    if making.returncode:
        pytest.skip(f"no loop device can be made here: {making.stderr.strip()}")
    device = Path(making.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def tmpfs(options: str) -> tuple[str, ...]:
    """Return the command that mounts a file system in memory."""
    return ("mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs")
