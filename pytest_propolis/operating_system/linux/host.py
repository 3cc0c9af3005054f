"""The host on Linux, from procfs and sysfs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, final

from ..interface import Mount
from .memory import MemoryLimits

__all__ = ["LinuxHost"]

_PROC: Final = Path("/proc")


@final
class LinuxHost:
    """The machine, or the container, in which this process runs."""

    block_devices: Path | None = Path("/sys/block")
    can_clone_files: bool = True
    run_directory: Path = Path("/run")
    engine_obstacle: str | None = None

    def total_mib(self) -> int:
        return MemoryLimits().total_mib()

    def available_mib(self) -> int:
        return MemoryLimits().available_mib()

    def idle_s(self) -> float:
        with (_PROC / "stat").open() as file:
            _, _, _, _, idle, iowait, *_ = file.readline().split()
        return (int(idle) + int(iowait)) / os.sysconf("SC_CLK_TCK")

    def processors(self) -> int:
        return len(os.sched_getaffinity(0))

    def mounts(self) -> list[Mount] | None:
        """Read ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""
        try:
            lines = (_PROC / "self/mountinfo").read_bytes().split(b"\n")
        except OSError:
            return None
        return [Mount(Path(os.fsdecode(_unescaped(line.split(b" ")[4]))), os.fsdecode(line)) for line in lines if line]

    def bound_sockets(self) -> list[str]:
        """Read ``/proc/net/unix``. Abstract names are among them, with a leading ``@``."""
        try:
            lines = (_PROC / "net/unix").read_text(errors="replace").splitlines()[1:]
        except OSError:
            return []
        return [fields[7] for line in lines if len(fields := line.split()) > 7]

    def require_file_locks(self, directory: Path) -> None:
        """Locks of Linux have always been those of an open file."""


def _unescaped(field: bytes) -> bytes:
    """Return a path as it is: white space and backslashes are octal escapes in mountinfo."""
    return re.sub(rb"\\(\d{3})", lambda escape: bytes([int(escape[1], 8)]), field)
