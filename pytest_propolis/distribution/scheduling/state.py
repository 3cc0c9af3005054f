"""A scheduler's state of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from .backlog import Backlog
from .demand import Queue
from .fleet import Fleet
from .host import HostState
from .item import Item
from .needs import Needs, Way
from .planning.durations import Durations
from .planning.gathering import Gatherings, Request
from .workers import Workers

__all__ = ["RunState", "Running"]

MOST_LOSSES: Final = 4
"""A test that has been lost more often than that is set aside: as the longest, it would let no other test run."""

HOST_LOSS: Final = 0.25
"""How much a loss together with a host counts: the host is probably at fault."""


@dataclass(slots=True, eq=False)
class Running:
    """Tests that a worker runs one after the other on the same hosts."""

    worker: str
    tests: tuple[int, ...]
    hosts: tuple[HostState, ...]
    queue: Queue
    speed: float
    rate: float
    """Slots that it holds, each counted with its speed."""
    since_s: float
    work_s: float
    """Slot seconds that all of them will probably take, on hosts of speed 1.0."""
    done: int = 0


@dataclass(slots=True)
class RunState:
    """The tests, the hosts and the workers of a run."""

    items: list[Item] = field(default_factory=list)
    indices: dict[str, int] = field(default_factory=dict)
    """Node id -> index in items."""
    durations: Durations = field(default_factory=Durations)
    backlog: Backlog = field(default_factory=Backlog)
    fleet: Fleet = field(default_factory=Fleet)
    workers: Workers = field(default_factory=Workers)
    running: dict[str, Running] = field(default_factory=dict)
    """By worker."""
    displaced: dict[str, bool] = field(default_factory=dict)
    """Worker whose test has lost its hosts while it ran -> whether other ones are being gathered."""
    finished: set[int] = field(default_factory=set)
    losses: dict[int, float] = field(default_factory=dict)
    """Test -> how often it was lost, or is to run again; a loss with a host counts `HOST_LOSS`."""
    set_aside: list[int] = field(default_factory=list)
    """Tests that were lost too often: they wait until all others have started that can."""
    changed: set[HostState] = field(default_factory=set)
    """Hosts that may have room for a test, or a test for their room."""
    newly_held: list[tuple[int, tuple[HostState, ...]]] = field(default_factory=list)
    """Tests for which a host is to be found, if they are still held by idle workers."""
    awake: bool = False
    """Whether every host with a free slot is to look for a test again, since there are other tests or workers."""
    gatherings: Gatherings = field(init=False)
    _queues: dict[int, Queue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gatherings = Gatherings(self.fleet)

    def know(self, items: Sequence[Item]) -> None:
        """Let tests wait that were not known before."""
        first = len(self.items)
        indices = {item.id: index for index, item in enumerate(items, first)}
        if len(indices) != len(items) or not indices.keys().isdisjoint(self.indices):
            raise ValueError("two tests have the same id")
        self.items += items
        self.indices |= indices
        self.durations.add(items)
        probes = set(self.durations.probes())
        hostless: dict[Needs, list[tuple[float, int]]] = {}
        for index, item in enumerate(items, first):
            if item.needs.hosts or index in probes:
                self.wait(index, probe=index in probes)
            else:
                hostless.setdefault(item.needs, []).append((self.durations.estimate(index).rank_s, index))
        for needs, ranked in hostless.items():
            self.backlog.add_hostless(self.backlog.queue(needs), ranked)
        self.fleet.know(self.backlog.demands)

    def queue(self, index: int) -> Queue:
        """Return the queue of a test, whether it waits there or not."""
        queue = self._queues.get(index)
        if queue is None:  # Needs are slow to hash.
            queue = self._queues[index] = self.backlog.queue(self.items[index].needs)
        return queue

    def wait_again(self, index: int, *, with_host: bool = False) -> None:
        """Let a test wait that has run, or was lost while it ran.

        :param with_host: whether it was lost with a host.
        """
        self.losses[index] = self.losses.get(index, 0.0) + (HOST_LOSS if with_host else 1.0)
        self.wait(index)

    def wait(self, index: int, *, probe: bool = False) -> None:
        """Let a test wait that no worker holds."""
        if self.losses.get(index, 0.0) > MOST_LOSSES:
            self.set_aside.append(index)
        else:
            self._enqueue(index, probe=probe)

    def readmit(self, *, always: bool = False) -> None:
        """Let the tests start that were set aside, if no other waits that can, or always."""
        if not self.set_aside or (self._others_wait() and not always):
            return
        indices, self.set_aside = self.set_aside, []
        for index in indices:
            self._enqueue(index)
        self.awake = True

    def _others_wait(self) -> bool:
        """Return whether a test waits that is not set aside, and there are hosts for it."""
        waiting = (queue.needs for queue in self.backlog.queues if queue.tests)
        held = (self.queue(index).needs for index in self.workers.holders)
        return any(self.fleet.can_run(needs) for needs in chain(waiting, held))

    def _enqueue(self, index: int, *, probe: bool = False) -> None:
        queue, estimate = self.queue(index), self.durations.estimate(index)
        gathered = queue.demand.gathered
        self.backlog.add(index, queue, estimate, probe=probe and not gathered)
        if gathered:
            self.gatherings.add(Request(index, queue.needs, estimate.rank_s))

    def withdraw(self, index: int) -> float:
        """Take a test out that starts now, and return the slot seconds that it will probably take."""
        if self.workers.holders.pop(index, None) is None:
            return self.backlog.remove(index)
        queue = self.queue(index)
        self.backlog.unhold(index, queue)
        return self.durations.estimate(index).mean_s * queue.needs.hosts

    def release(self, worker: str) -> Running:
        """Free what a worker's tests hold. The worker is idle then."""
        run = self.running.pop(worker)
        self._free(run)
        if self.displaced.pop(worker, False):
            for gathering in self.gatherings.worker_lost(worker):
                self.changed.update((*gathering.taken, *gathering.missing))
        held = self.workers.idle(worker)
        if held is not None:
            self.hold(held, run.hosts)
        return run

    def displace(self, worker: str) -> None:
        """Free what a worker's tests hold, though they go on as soon as they have other hosts."""
        run = self.running[worker]
        self._free(run)
        run.hosts, run.rate = (), 0.0
        self.displaced[worker] = False

    def _free(self, run: Running) -> None:
        queue = run.queue
        queue.demand.run(-run.rate)
        for state in run.hosts:
            if state.alive:
                state.give_back(queue.needs)
                self.changed.add(state)

    def relocate(self, worker: str, hosts: tuple[HostState, ...]) -> None:
        """Let a worker's tests go on, on hosts that have been taken for them; without any if there are too few."""
        run = self.running[worker]
        del self.displaced[worker]
        run.hosts = hosts
        run.speed = min((state.speed for state in hosts), default=1.0)
        run.rate = run.speed * len(hosts)
        run.queue.demand.run(run.rate)

    def hold(self, index: int, hosts: tuple[HostState, ...] = ()) -> None:
        """Let an idle worker hold a test.

        :param hosts: those of the test that the worker ran before it.
        """
        queue, rank_s = self.queue(index), self.durations.estimate(index).rank_s
        if not queue.tests and not queue.held:
            self.fleet.version += 1  # What it needs did not count while its worker was busy.
        self.backlog.hold(index, queue, rank_s)
        bound = self.gatherings.unbind(index)
        if queue.demand.gathered or (bound and queue.demand.way is Way.NEXT):
            self.gatherings.add(Request(index, queue.needs, rank_s, held=True))
        self.newly_held.append((index, hosts))

    def unhold(self, index: int) -> None:
        """Take a test from the worker that holds it as its next."""
        if self.workers.holders.pop(index, None) is not None:
            self.backlog.unhold(index, self.queue(index))

    def forgo_hosts(self, index: int) -> None:
        """Let a test that no worker runs start without the hosts that it needs."""
        self.items[index] = self.items[index]._replace(needs=Needs(hosts=0))
        self._queues.pop(index, None)

    def remaining_s(self, now_s: float) -> float:
        """Return the slot seconds that what runs will probably still take, on hosts of speed 1.0."""
        lefts_s = [run.work_s - (now_s - run.since_s) * run.rate for run in self.running.values()]
        return sum([left_s for left_s in lefts_s if left_s > 0.0])

    def take_changed(self) -> set[HostState]:
        """Return the hosts that have changed since, and those with a free slot if that is to be looked at again."""
        changed, self.changed = self.changed, set()
        if self.awake:
            self.awake = False
            changed.update(state for state in self.fleet.living if state.slots > 0)
        return changed
