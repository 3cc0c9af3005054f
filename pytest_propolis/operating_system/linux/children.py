"""Child processes on Linux: the parent-death signal, and the holders of a pipe."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, final

__all__ = ["LinuxChildren"]

_PROC: Final = Path("/proc")


@final
class LinuxChildren:
    """Children that get a signal when the thread that started them ends."""

    privileges: tuple[str, ...] = ()

    @contextmanager
    def ending_with_parent(self) -> Iterator[tuple[str, ...]]:
        """Yield the command of `setpriv`, of util-linux. It execs the program, so the pid stays the same.

        A `preexec_fn` would do the same, but needs a fork of the whole interpreter for every child. Without `setpriv`
        children may outlive this process.
        """
        yield self._parent_death_prefix

    def descendants(self, pid: int, *, pipe: int) -> _PipeHolders:
        return _PipeHolders(os.fstat(pipe).st_ino)

    def signal_group(self, group: int, number: signal.Signals) -> None:
        os.killpg(group, number)

    @cached_property
    def _parent_death_prefix(self) -> tuple[str, ...]:
        setpriv = shutil.which("setpriv")
        return (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()


class _PipeHolders:
    """The other processes that have a pipe open.

    :param pipe: the number of its inode.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def kill(self) -> None:
        for process in _PROC.glob("[0-9]*"):
            pid = int(process.name)
            with contextlib.suppress(OSError):
                if pid != os.getpid() and self._is_held_by(process):
                    self._kill(pid, process)

    def close(self) -> None:
        pass

    def _kill(self, pid: int, process: Path) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            if self._is_held_by(process):  # looked at again: it is the process that the descriptor is of
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)

    def _is_held_by(self, process: Path) -> bool:
        return any(str(fd.readlink()) == f"pipe:[{self._pipe}]" for fd in (process / "fd").iterdir())
