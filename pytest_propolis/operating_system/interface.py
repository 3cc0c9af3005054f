"""The interface that each operating system implements.

An implementation without a way to do something raises `CapabilityMissing`, which names what is needed. Everything else
in this project is POSIX.
"""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import msgspec

__all__ = ["Children", "Descendants", "Host", "Mount", "OpenProcess", "OperatingSystem", "ProcessStatus", "Processes"]


class ProcessStatus(msgspec.Struct, frozen=True):
    """What the kernel reports about a process.

    :param start_time: a number that no other process with the same pid has during one boot.
    :param parent: the parent's pid.
    :param is_dead: whether it is a zombie of which no thread runs.
    """

    start_time: int
    parent: int
    is_dead: bool


class Mount(msgspec.Struct, frozen=True):
    """A mounted file system.

    :param point: where it is mounted.
    :param record: the kernel's description of it, which names what is mounted.
    """

    point: Path
    record: str


class OpenProcess(Protocol):
    """A process that stays the same one even if its pid is reused."""

    def signal(self, number: signal.Signals) -> None:
        """Signal the process.

        :raises ProcessLookupError: when it is gone.
        :raises PermissionError: when it belongs to another user.
        """

    def wait_gone(self, timeout_s: float) -> bool:
        """Block until it is dead (a zombie counts as dead) or the timeout is over; return whether it is dead."""


class Processes(Protocol):
    """The processes of the host, as far as this user can see them."""

    def boot_id(self) -> str:
        """Return an id of the host's boot; empty if it is unknown."""

    def pid_namespace(self) -> str:
        """Return an id of the namespace of this process's pids; empty if it is unknown."""

    def pids(self) -> list[int]:
        """Return the pids of all processes; empty if they cannot be listed."""

    def status(self, pid: int) -> ProcessStatus | None:
        """Return the status of a process; None if it is gone or cannot be read."""

    def real_uid(self, pid: int) -> int | None:
        """Return the real user id of a process; None if it is gone or cannot be read."""

    def command_line(self, pid: int) -> bytes:
        """Return a process's arguments, each ended by a NUL; empty if they cannot be read."""

    def environment(self, pid: int) -> bytes:
        """Return the initial environment of a process, each variable ended by a NUL; empty if it cannot be read."""

    @property
    def can_open(self) -> bool:
        """Whether `open` works in this interpreter."""

    def open(self, pid: int) -> AbstractContextManager[OpenProcess]:
        """Open the process that has this pid now. The caller must check its identity after that.

        :raises ProcessLookupError: when there is none.
        """


class Descendants(Protocol):
    """The descendants of a child process, including those outside its process group."""

    def kill(self) -> None:
        """Kill all of them, as far as permitted. Blocking."""

    def close(self) -> None:
        """Release the descriptors."""


class Children(Protocol):
    """Child processes of this one."""

    @property
    def privileges(self) -> tuple[str, ...]:
        """The command prefix that gives a program the privileges of the user's profile; empty where there is none."""

    def ending_with_parent(self) -> AbstractContextManager[tuple[str, ...]]:
        """Return a context in which to start a child that is killed when this process ends for any reason.

        It yields the command prefix with which to start the child. The child must be started in the entering thread.
        """

    def descendants(self, pid: int, *, pipe: int) -> Descendants:
        """Return the child's descendants, which are known until the child has been waited for.

        :param pipe: the read end of a pipe whose write end the child inherits, and nothing else holds.
        """

    def signal_group(self, group: int, number: signal.Signals) -> None:
        """Signal a process group of this process's children.

        :raises ProcessLookupError: when the group is empty.
        :raises PermissionError: when it may not be signalled.
        """


class Host(Protocol):
    """The machine, or the zone or container, in which this process runs."""

    def total_mib(self) -> int:
        """Return the memory that this process and its children may use, in MiB."""

    def available_mib(self) -> int:
        """Return the memory that can be allocated without swapping or killing anything, in MiB."""

    def idle_s(self) -> float:
        """Return the idle time since boot in seconds, summed over all processors.

        :raises CapabilityMissing: when it is not known.
        """

    def processors(self) -> int:
        """Return the number of processors that this process may use."""

    def mounts(self) -> list[Mount] | None:
        """Return the mounted file systems; None if they are not known."""

    def bound_sockets(self) -> list[str]:
        """Return the paths to which UNIX sockets are bound, also those that were removed; empty if it is not known."""

    @property
    def block_devices(self) -> Path | None:
        """The directory that describes block devices like Linux's sysfs; None if there is none."""

    @property
    def can_clone_files(self) -> bool:
        """Whether the system has a call by which two files share their content until one is written to (FICLONE)."""

    @property
    def run_directory(self) -> Path:
        """The superuser's directory for files that need not survive a boot."""

    @property
    def engine_obstacle(self) -> str | None:
        """The reason why the engine cannot run on this system; None if it can."""

    def require_file_locks(self, directory: Path) -> None:
        """Make sure that a lock is released only by the open file that took it.

        :raises CapabilityMissing: when `fcntl.flock` does not work like that in the directory.
        """


class OperatingSystem(msgspec.Struct, frozen=True, kw_only=True):
    """An operating system: its processes, children and host."""

    name: str
    processes: Processes
    children: Children
    host: Host
