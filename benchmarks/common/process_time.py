"""The processor time of a process."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_s"]


def cpu_s(pid: int) -> float:
    """Return the seconds of all its threads, including the kernel's share, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
