"""Processes on Linux: the text files of procfs, and pidfds."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Final, final

from ..interface import ProcessStatus

__all__ = ["LinuxProcesses"]

_PROC: Final = Path("/proc")
_DEAD_STATES: Final = (b"Z", b"X", b"x")


@final
class LinuxProcesses:
    """The processes that procfs shows."""

    def boot_id(self) -> str:
        return self._boot_id

    def pid_namespace(self) -> str:
        try:
            return str((_PROC / "self/ns/pid").readlink())
        except OSError:
            return ""

    def pids(self) -> list[int]:
        try:
            with os.scandir(_PROC) as entries:
                return [int(entry.name) for entry in entries if entry.name.isdigit()]
        except OSError:
            return []

    def status(self, pid: int) -> ProcessStatus | None:
        """Read ``/proc/<pid>/stat`` (proc_pid_stat(5)). The start time is in clock ticks since boot."""
        try:
            text = _read(pid, "stat")
            # Field 2 is the program's name in parentheses, which may itself hold spaces and parentheses.
            fields = text[text.rindex(b")") + 1 :].split()
            is_dead = fields[0] in _DEAD_STATES and int(fields[17]) <= 1
            return ProcessStatus(start_time=int(fields[19]), parent=int(fields[1]), is_dead=is_dead)
        except (ValueError, IndexError):
            return None

    def real_uid(self, pid: int) -> int | None:
        lines = _read(pid, "status").split(b"\n")
        return next((int(line.split()[1]) for line in lines if line.startswith(b"Uid:")), None)

    def command_line(self, pid: int) -> bytes:
        return _read(pid, "cmdline")

    def environment(self, pid: int) -> bytes:
        return _read(pid, "environ")

    @property
    def can_open(self) -> bool:
        return hasattr(os, "pidfd_open")

    @contextmanager
    def open(self, pid: int) -> Iterator[_Pidfd]:
        pidfd = os.pidfd_open(pid)
        try:
            yield _Pidfd(pidfd)
        finally:
            os.close(pidfd)

    @cached_property
    def _boot_id(self) -> str:
        try:
            return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return ""


class _Pidfd:
    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    def signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def wait_gone(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(max(timeout_s, 0) * 1000))


def _read(pid: int, name: str) -> bytes:
    # The leak check reads two files of each process: without a Path, and without a buffer, in half the time.
    try:
        with FileIO(f"{_PROC}/{pid}/{name}") as file:
            return file.readall()
    except OSError:
        return b""
