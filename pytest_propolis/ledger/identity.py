"""Process identity: distinguish a process from every other one that ever had its pid.

Pids are recycled. Together with the kernel's start time (field 22 of ``/proc/<pid>/stat``) and the boot id, a pid
identifies one process permanently. Where the operating system reports no start time, a process with the same pid
counts as the same one and is never signalled.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import CapabilityMissing

__all__ = ["ProcessIdentity", "find_marked"]

_PROC: Final = Path("/proc")
_DEAD_STATES: Final = (b"Z", b"X", b"x")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """The permanent identity of a process.

    :param pid: its pid in ``pid_namespace``.
    :param start_time: clock ticks from boot to its start; None if unknown.
    :param boot_id: the boot during which it ran; empty if unknown.
    :param pid_namespace: the namespace of the pid; empty if unknown.
    """

    pid: int
    start_time: int | None = None
    boot_id: str = ""
    pid_namespace: str = ""

    @classmethod
    def current(cls) -> ProcessIdentity:
        """Return the identity of the calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return the identity of the process that has this pid now, which may be a zombie.

        :raises ProcessLookupError: when there is no such process.
        """
        stat = _Stat.read(pid)
        if stat is None and not _pid_exists(pid):
            raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}")
        return cls(pid, stat.start_time if stat else None, _boot_id(), _pid_namespace())

    @classmethod
    def from_facts(cls, facts: Mapping[str, str]) -> ProcessIdentity | None:
        """Parse the output of `facts`; return None if it does not identify one process permanently."""
        try:
            start_time = int(facts["start_time"])
            return cls(int(facts["pid"]), start_time, facts["boot_id"], facts.get("pid_namespace", ""))
        except (KeyError, ValueError):
            return None

    def facts(self) -> dict[str, str]:
        """Return the identity as a mapping of strings, for a ledger entry."""
        facts = {"pid": str(self.pid), "boot_id": self.boot_id, "pid_namespace": self.pid_namespace}
        return facts if self.start_time is None else facts | {"start_time": str(self.start_time)}

    def is_alive(self) -> bool:
        """False only when the process is provably dead: its pid is free or another's, it is a zombie, or the machine
        has booted since. Whatever cannot be read counts as alive, as does a pid of another namespace.

        A zombie whose other threads still run is alive.
        """
        if _differ(self.boot_id, _boot_id()):
            return False
        if _differ(self.pid_namespace, _pid_namespace()):
            return True
        stat = _Stat.read(self.pid)
        if stat is None:
            return _pid_exists(self.pid)
        return not stat.is_dead and self.start_time in (None, stat.start_time)

    def carries(self, mark: str) -> bool:
        """Return whether it is alive, belongs to this user, and has the mark in its command line or environment."""
        marked = any(mark.encode() in _read(self.pid, name) for name in ("environ", "cmdline"))
        # Checked last: had the pid passed to another process before the mark was read, this identity would be dead.
        return marked and _real_uid(self.pid) == os.getuid() and self.is_alive()

    def kill(self, signal_number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal the process, and never another one that has reused its pid.

        :returns: whether it was alive to be signalled.
        :raises CapabilityMissing: when it cannot be told from another process with the same pid.
        :raises PermissionError: when it belongs to another user.
        """
        with self._pidfd() as pidfd:
            if pidfd is None:
                return False
            try:
                signal.pidfd_send_signal(pidfd, signal_number)
            except ProcessLookupError:
                return False
            return True

    def wait_gone(self, timeout_s: float) -> bool:
        """Block until the process is dead (a zombie counts as dead) or the timeout is over.

        :returns: whether it is dead.
        :raises CapabilityMissing: when it cannot be told from another process with the same pid.
        """
        with self._pidfd() as pidfd:
            if pidfd is None:
                return True
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            return bool(poller.poll(max(timeout_s, 0) * 1000))

    @contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        """Return a pidfd of the process, or None if it is dead.

        The identity is checked again after the descriptor was opened: a match then proves that both are one process.
        """
        self._require_distinct()
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield pidfd if self.is_alive() else None
        finally:
            os.close(pidfd)

    def _require_distinct(self) -> None:
        foreign = _differ(self.pid_namespace, _pid_namespace()) and not _differ(self.boot_id, _boot_id())
        if self.start_time is None or foreign or not hasattr(os, "pidfd_open"):
            raise CapabilityMissing(
                f"process {self.pid} cannot be told from another one with the same pid, so it is not signalled",
                hint=f"look at it with `ps -fp {self.pid}`, where it was started, and end it by hand",
            )


@dataclass(frozen=True, slots=True)
class _Stat:
    """The fields used from ``/proc/<pid>/stat`` (proc_pid_stat(5))."""

    state: bytes
    parent: int
    threads: int
    start_time: int

    @classmethod
    def read(cls, pid: int) -> _Stat | None:
        """Return the fields of this process; None if it is gone or the system does not report them."""
        try:
            text = _read(pid, "stat")
            # Field 2 is the program's name in parentheses, which may itself hold spaces and parentheses.
            fields = text[text.rindex(b")") + 1 :].split()
            return cls(fields[0], int(fields[1]), int(fields[17]), int(fields[19]))
        except (ValueError, IndexError):
            return None

    @property
    def is_dead(self) -> bool:
        return self.state in _DEAD_STATES and self.threads <= 1


def find_marked(*marks: str) -> list[ProcessIdentity]:
    """Return this user's running processes that carry one of the marks in their command line or environment.

    The caller and its ancestors are excluded. Empty where there is no ``/proc``.
    """
    spared = _lineage()
    words = [mark.encode() for mark in marks]
    candidates = (_identity(pid) for pid in _pids() if pid not in spared and _mentions(pid, words))
    return [process for process in candidates if process and any(map(process.carries, marks))]


def _mentions(pid: int, words: Sequence[bytes]) -> bool:
    """Return whether a process may carry one of the words; nearly all that run on a machine do not."""
    return any(word in text for text in (_read(pid, "environ"), _read(pid, "cmdline")) for word in words)


def _identity(pid: int) -> ProcessIdentity | None:
    try:
        return ProcessIdentity.of(pid)
    except ProcessLookupError:
        return None


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def _real_uid(pid: int) -> int | None:
    lines = _read(pid, "status").split(b"\n")
    return next((int(line.split()[1]) for line in lines if line.startswith(b"Uid:")), None)


def _pids() -> list[int]:
    try:
        return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]
    except OSError:
        return []


def _lineage() -> set[int]:
    lineage: set[int] = set()
    pid = os.getpid()
    while pid not in lineage and (stat := _Stat.read(pid)):
        lineage.add(pid)
        pid = stat.parent
    return lineage


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _differ(one: str, other: str) -> bool:
    return bool(one and other and one != other)


@functools.cache
def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
