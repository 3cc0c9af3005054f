"""The host on illumos: sysconf(3C), and the table of mounts."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from ...errors import CapabilityMissing
from ..interface import Mount

__all__ = ["IllumosHost"]

Lock = Callable[[int, int], object]

_EXCLUSIVE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB


@final
class IllumosHost:
    """The machine, or the zone, in which this process runs.

    :param root: where its file systems are found.
    :param lock: what locks files.
    """

    block_devices: Path | None = None
    can_clone_files: bool = False
    run_directory: Path = Path("/var/run")
    engine_obstacle: str | None = "guests' memory in memfds, and open files as paths below /proc/self/fd"

    def __init__(self, root: Path, *, lock: Lock = fcntl.flock) -> None:
        self._root = root
        self._lock = lock

    def total_mib(self) -> int:
        return _pages("SC_PHYS_PAGES")

    def available_mib(self) -> int:
        """Return the free memory. What ZFS would give back from its cache (the ARC) is not counted."""
        return _pages("SC_AVPHYS_PAGES")

    def idle_s(self) -> float:
        raise CapabilityMissing(
            "the idle time of processors is not known: it needs /proc/stat of Linux",
            hint="give --propolis-standby a number: without `auto` it is not asked for",
        )

    def processors(self) -> int:
        return os.cpu_count() or 1

    def mounts(self) -> list[Mount] | None:
        """Read ``/etc/mnttab``, mnttab(5): what is mounted, and where, with tabs between."""
        try:
            lines = (self._root / "etc/mnttab").read_bytes().split(b"\n")
        except OSError:
            return None
        return [
            Mount(Path(os.fsdecode(fields[1])), os.fsdecode(line))
            for line in lines
            if len(fields := line.split(b"\t")) > 1
        ]

    def bound_sockets(self) -> list[str]:
        """None: the kernel lists sockets only to netstat(8), which knows no paths of other processes' sockets."""
        return []

    def require_file_locks(self, directory: Path) -> None:
        """Try a lock with a file that is opened twice.

        illumos has `flock` since 2015, for local file systems. A Python that was built without it makes record locks
        of `fcntl.flock`, which belong to processes: to close any descriptor of the file releases them.
        """
        with (
            tempfile.NamedTemporaryFile(dir=directory, prefix=".lock-") as first,
            Path(first.name).open("r+b") as second,
        ):
            try:
                self._lock(first.fileno(), _EXCLUSIVE)
            except OSError as error:
                raise _no_locks(directory, error.strerror or str(error)) from None
            try:
                self._lock(second.fileno(), _EXCLUSIVE)
            except OSError:
                return
        raise _no_locks(directory, "this Python was built without flock(3C), and has record locks instead")


def _pages(name: str) -> int:
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") >> 20


def _no_locks(directory: Path, why: str) -> CapabilityMissing:
    return CapabilityMissing(
        f"files in {directory} cannot be locked by flock: {why}",
        hint="set XDG_RUNTIME_DIR to a local directory, and use a Python of the distribution, on illumos since 2015",
    )
