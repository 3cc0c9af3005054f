"""Which test a worker holds as its next, for workers that start a test only when they know the next one."""

from __future__ import annotations

from .chooser import Chooser
from .demand import Queue
from .host import HostState
from .state import RunState

__all__ = ["Follower"]


class Follower:
    """Chooses what follows a test: a short test behind a long one, and the next that matters behind a short one.

    What a worker holds waits until the worker has run the test before it, and no other worker can run it meanwhile.
    """

    def __init__(self, run: RunState, chooser: Chooser) -> None:
        self._run = run
        self._chooser = chooser

    def choose(self, worker: str, queue: Queue, hosts: tuple[HostState, ...], duration_s: float) -> int | None:
        """Choose what follows the tests that a worker starts now.

        :param queue: the queue that they came from.
        :param duration_s: how long they take at worst.
        :returns: None if nothing follows, and the worker ends.
        """
        run = self._run
        run.readmit()
        short = self._chooser.is_short(duration_s)
        index = self._next(queue, hosts[0]) if short and hosts else self._filler(queue, hosts)
        if index is not None and not short and self._spare_workers() and not self._is_short(index):
            index = None
        if index is None:
            run.workers.end_after_this(worker)
        else:
            run.backlog.remove(index)
            run.workers.following[worker] = index
        return index

    def _next(self, queue: Queue, state: HostState) -> int | None:
        """Return what its host would run next."""
        gathered = self._run.gatherings.bind(self._run.backlog)
        if gathered is not None:
            return gathered
        choice = self._chooser.best(state, after=queue.needs)
        return choice[1] if choice else self._filler(queue, (state,))

    def _filler(self, queue: Queue, hosts: tuple[HostState, ...]) -> int | None:
        """Return the shortest test, if possible one that can have the place of the tests before it."""
        for state in hosts:
            needs = queue.needs
            index = self._chooser.following(state, state.cpus + needs.cpus, state.memory_mib + needs.memory_mib)
            if index is not None and self._is_short(index):
                return index
        return self._run.backlog.shortest(self._run.fleet.can_run)

    def _is_short(self, index: int) -> bool:
        return self._chooser.is_short(self._run.durations.estimate(index).rank_s)

    def _spare_workers(self) -> bool:
        """Return whether there are enough workers without one for all slots, or for all tests that are left."""
        run = self._run
        left = run.workers.staying - 1
        slots = run.fleet.slots
        hostless = sum(len(queue.tests) for queue in run.backlog.hostless)
        return left >= min(slots + hostless, len(run.backlog) + len(run.workers.holders))
