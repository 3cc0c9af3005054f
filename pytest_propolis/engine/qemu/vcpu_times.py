"""The times of a machine's virtual CPUs, from the kernel's accounting of QEMU's threads."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from .machine import Machine
from .monitor import MachineError

__all__ = ["VcpuTimes", "VcpuTimesUnknown", "VcpuTimesView"]

SCHEDSTAT: Final = "/proc/{pid}/task/{thread}/schedstat"


class VcpuTimesUnknown(Exception):
    """Raised when the times of virtual CPUs cannot be determined, with the reason."""


class VcpuTimes(NamedTuple):
    """The time that a virtual CPU has spent in each state, in nanoseconds.

    :param run: its thread was on a processor: it ran the guest, or emulated something in the guest's place, which
        cannot be told apart. With TCG it also translated code.
    :param waiting: its thread was ready, and on no processor.
    :param idle: all other time, also while the guest was paused.
    """

    run: int
    waiting: int
    idle: int


class VcpuTimesView:
    """The times of a machine's virtual CPUs from when this was made. Make it with `of`.

    :param pid: QEMU's process.
    :param threads: the thread of each virtual CPU, by number.
    """

    def __init__(self, pid: int, threads: dict[int, int]) -> None:
        self._pid = pid
        self._threads = threads
        self._began_ns = time.monotonic_ns()
        self._first = {vcpu: self._account(thread) for vcpu, thread in threads.items()}
        self._idle = dict.fromkeys(threads, 0)

    @classmethod
    async def of(cls, machine: Machine) -> VcpuTimesView:
        """Return the times of a machine's virtual CPUs from now on.

        :raises VcpuTimesUnknown: when several virtual CPUs share a thread, or the kernel does no accounting of threads.
        :raises MachineError: when QEMU does not say which its threads are.
        """
        if machine.pid is None:
            raise MachineError("QEMU does not run")
        cpus = await machine.execute("query-cpus-fast")
        threads = {int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in cpus}
        if max(Counter(threads.values()).values()) > 1:
            raise VcpuTimesUnknown(
                f"QEMU runs the {len(threads)} virtual CPUs in one thread (TCG): their times cannot be told apart"
            )
        return cls(machine.pid, threads)

    def read(self) -> dict[int, VcpuTimes]:
        """Return the times up to now, by the number of the virtual CPU. No time is less than at the last call.

        :raises VcpuTimesUnknown: when the threads have ended.
        """
        return {vcpu: self._times(vcpu, thread) for vcpu, thread in self._threads.items()}

    def _times(self, vcpu: int, thread: int) -> VcpuTimes:
        run, waiting = self._account(thread)
        first_run, first_waiting = self._first[vcpu]
        run, waiting = run - first_run, waiting - first_waiting
        # The kernel brings the account of a thread that is on a processor up to date with every tick only.
        idle = time.monotonic_ns() - self._began_ns - run - waiting
        self._idle[vcpu] = max(self._idle[vcpu], idle)
        return VcpuTimes(run, waiting, self._idle[vcpu])

    def _account(self, thread: int) -> tuple[int, int]:
        """Return a thread's time on a processor and on the run queue, in nanoseconds: proc_pid_schedstat(5)."""
        try:
            run, waiting, _ = Path(SCHEDSTAT.format(pid=self._pid, thread=thread)).read_text().split()
        except (OSError, ValueError) as error:
            raise VcpuTimesUnknown(f"the kernel has no account of QEMU's thread {thread}: {error}") from None
        if run == "0":  # it has run, if only to start
            raise VcpuTimesUnknown("the kernel keeps no account of threads: it was built without CONFIG_SCHED_INFO")
        return int(run), int(waiting)
