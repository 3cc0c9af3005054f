"""How busy the host's processors are, as the kernel tells it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["idle_s"]

STAT: Final = Path("/proc/stat")


def idle_s() -> float:
    """For how long processors had nothing to do, since the machine was started: seconds, the sum over all of them."""
    with STAT.open() as file:
        _, _, _, _, idle, iowait, *_ = file.readline().split()
    return (int(idle) + int(iowait)) / os.sysconf("SC_CLK_TCK")
