"""Process identity: distinguish a process from every other one that ever had its pid.

Pids are recycled. Together with the start time that the kernel reports and the boot id, a pid identifies one process
permanently. Where the operating system reports no start time, a process with the same pid
counts as the same one and is never signalled.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from ..errors import CapabilityMissing
from ..operating_system.interface import OpenProcess, Processes
from ..operating_system.registry import system

__all__ = ["ProcessIdentity", "find_tagged"]


class ProcessIdentity(msgspec.Struct, frozen=True):
    """The permanent identity of a process.

    :param pid: its pid in ``pid_namespace``.
    :param start_time: when it started, as the operating system counts; None if unknown.
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
        known = _processes()
        status = known.status(pid)
        if status is None and not _pid_exists(pid):
            raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}")
        return cls(pid, status.start_time if status else None, known.boot_id(), known.pid_namespace())

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
        known = _processes()
        if _differ(self.boot_id, known.boot_id()):
            return False
        if _differ(self.pid_namespace, known.pid_namespace()):
            return True
        status = known.status(self.pid)
        if status is None:
            return _pid_exists(self.pid)
        return not status.is_dead and self.start_time in (None, status.start_time)

    def carries(self, tag: str) -> bool:
        """Return whether it is alive, belongs to this user, and has the tag in its command line or environment."""
        known, encoded = _processes(), tag.encode()
        tagged = encoded in known.environment(self.pid) or encoded in known.command_line(self.pid)
        # Checked last: had the pid passed to another process before the tag was read, this identity would be dead.
        return tagged and known.real_uid(self.pid) == os.getuid() and self.is_alive()

    def kill(self, signal_number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal the process, and never another one that has reused its pid.

        :returns: whether it was alive to be signalled.
        :raises CapabilityMissing: when it cannot be told from another process with the same pid.
        :raises PermissionError: when it belongs to another user.
        """
        with self._open() as process:
            if process is None:
                return False
            try:
                process.signal(signal_number)
            except ProcessLookupError:
                return False
            return True

    def wait_gone(self, timeout_s: float) -> bool:
        """Block until the process is dead (a zombie counts as dead) or the timeout is over.

        :returns: whether it is dead.
        :raises CapabilityMissing: when it cannot be told from another process with the same pid.
        """
        with self._open() as process:
            return process is None or process.wait_gone(timeout_s)

    @contextmanager
    def _open(self) -> Iterator[OpenProcess | None]:
        """Yield the open process, or None if it is dead.

        The identity is checked again after the process was opened: a match then proves that both are one process.
        """
        self._require_distinct()
        with ExitStack() as stack:
            try:
                process = stack.enter_context(_processes().open(self.pid))
            except ProcessLookupError:
                yield None
                return
            yield process if self.is_alive() else None

    def _require_distinct(self) -> None:
        known = _processes()
        foreign = _differ(self.pid_namespace, known.pid_namespace()) and not _differ(self.boot_id, known.boot_id())
        if self.start_time is None or foreign or not known.can_open:
            raise CapabilityMissing(
                f"process {self.pid} cannot be told from another one with the same pid, so it is not signalled",
                hint=f"look at it with `ps -fp {self.pid}`, where it was started, and end it by hand",
            )


def find_tagged(*tags: str) -> list[ProcessIdentity]:
    """Return this user's running processes that carry one of the tags in their command line or environment.

    The caller and its ancestors are excluded. Empty where processes cannot be listed.
    """
    spared = _self_and_ancestors()
    encoded = [tag.encode() for tag in tags]
    candidates = (_identity(pid) for pid in _processes().pids() if pid not in spared and _mentions(pid, encoded))
    return [process for process in candidates if process and any(map(process.carries, tags))]


def _mentions(pid: int, tags: Sequence[bytes]) -> bool:
    """Return whether a process may carry one of the tags; nearly all that run on a machine do not."""
    known = _processes()
    return any(tag in text for text in (known.environment(pid), known.command_line(pid)) for tag in tags)


def _processes() -> Processes:
    return system().processes


def _identity(pid: int) -> ProcessIdentity | None:
    try:
        return ProcessIdentity.of(pid)
    except ProcessLookupError:
        return None


def _self_and_ancestors() -> set[int]:
    lineage: set[int] = set()
    pid = os.getpid()
    while pid not in lineage and (status := _processes().status(pid)):
        lineage.add(pid)
        pid = status.parent
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
