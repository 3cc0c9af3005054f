"""Idle time of the host's processors, from the kernel's accounting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["idle_s"]

STAT: Final = Path("/proc/stat")


def idle_s() -> float:
    """Return the idle time since boot in seconds, summed over all processors."""
    with STAT.open() as file:
        _, _, _, _, idle, iowait, *_ = file.readline().split()
    return (int(idle) + int(iowait)) / os.sysconf("SC_CLK_TCK")
