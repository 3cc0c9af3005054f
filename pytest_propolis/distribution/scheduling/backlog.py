"""The tests that have not started, by what they need."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from .demand import LAST, PROBE_S, Demand, Queue
from .needs import Needs, Way
from .planning.durations import Estimate

__all__ = ["Backlog"]


_GATHERED_SHORTEST: Final = attrgetter("gathered", "shortest_s")


class _Place(NamedTuple):
    queue: Queue
    rank_s: float
    work_s: float


class Backlog:
    """All tests that have not started."""

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self.hostless: list[Queue] = []
        self.work_s = 0.0
        """Slot seconds that its tests will probably take on hosts of speed 1.0."""
        self.cpu_work_s = 0.0
        """The same in CPU seconds."""
        self.memory_work_s = 0.0
        """The same in MiB seconds."""
        self._demands: dict[tuple[str | None, frozenset[str], Way], Demand] = {}
        self._queues: dict[tuple[object, ...], Queue] = {}
        self._places: dict[int, _Place] = {}
        self._held: dict[int, float] = {}
        """Test that an idle worker holds -> its rank in s."""

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def queues(self) -> Iterable[Queue]:
        """All queues; tests with the same needs are in the same one."""
        return self._queues.values()

    def queue(self, needs: Needs) -> Queue:
        """Return the queue of the tests with these needs."""
        # A tuple is hashed and compared several times as fast as a dataclass.
        kind = (needs.guest, needs.memory_mib, needs.cpus, needs.hosts, needs.labels, needs.exclusive)
        queue = self._queues.get(kind)
        if queue is None:
            way = Way.of(needs)
            demand = self._demands.get((needs.guest, needs.labels, way))
            if demand is None:
                demand = self._demands[needs.guest, needs.labels, way] = Demand(needs, way, len(self.demands))
                self.demands.append(demand)
            queue = self._queues[kind] = Queue(demand, needs)
            if way is Way.HOSTLESS:
                self.hostless.append(queue)
        return queue

    def add(self, index: int, queue: Queue, estimate: Estimate, *, probe: bool = False) -> None:
        """Let a test wait."""
        rank_s = estimate.rank_s + PROBE_S if probe else estimate.rank_s
        work_s = estimate.mean_s * queue.needs.hosts
        self._places[index] = _Place(queue, rank_s, work_s)
        queue.demand.add(queue, rank_s, index)
        self._count(queue, work_s, 1)

    def add_hostless(self, queue: Queue, ranked: Sequence[tuple[float, int]]) -> None:
        """Let tests wait that need no host, of which there may be very many: (rank in s, index) of each."""
        place = _Place(queue, 0.0, 0.0)
        for rank_s, index in ranked:
            if rank_s != place.rank_s:
                place = _Place(queue, rank_s, 0.0)
            self._places[index] = place
        queue.demand.extend(queue, ranked)
        self._count(queue, 0.0, len(ranked))

    def wide(self, cpus: float, memory_mib: float, duration_s: float) -> Iterator[tuple[Queue, int, float]]:
        """Find the tests that need at least so much and run for longer than duration_s, each with its rank in s."""
        for queue in self._queues.values():
            needs = queue.needs
            if queue.demand.way is Way.NEXT and (needs.cpus >= cpus or needs.memory_mib >= memory_mib):
                least_s = duration_s * (queue.fastest or 1.0)
                first = bisect_right(queue.tests, (least_s, LAST))
                yield from ((queue, index, rank_s) for rank_s, index in queue.tests[first:] if rank_s < PROBE_S)

    def shortest(self, can_run: Callable[[Needs], bool]) -> int | None:
        """Return the index of the shortest test that no worker holds, of those whose needs can be met.

        Tests for which hosts are gathered come last: those that workers hold are gathered for before longer ones.
        """
        best: tuple[bool, float, int] | None = None
        # Most demands need not be looked into: their shortest tests are known.
        for demand in sorted([demand for demand in self.demands if demand.count], key=_GATHERED_SHORTEST):
            gathered = demand.gathered
            if best is not None and (gathered, demand.shortest_s) > best[:2]:
                break
            for queue in demand.queues:
                if queue.tests:
                    head = (gathered, *queue.tests[0])
                    if (best is None or head < best) and can_run(queue.needs):
                        best = head
        return best and best[2]

    def count_between(self, guest: str, least_s: float, most_s: float) -> int:
        """Return how many tests of a guest, for which no hosts are gathered, rank from least_s to most_s."""
        return sum(
            bisect_right(queue.tests, (most_s, LAST)) - bisect_left(queue.tests, (least_s, -1))
            for demand in self.demands
            if demand.guest == guest and demand.way is Way.NEXT
            for queue in demand.queues
        )

    def companions(self, queue: Queue, rank_s: float, target_s: float) -> list[int]:
        """Return tests that a worker can run in one batch with a test of a queue, in target_s all together.

        :param rank_s: the rank of that test.
        """
        if rank_s >= target_s:
            return []
        chosen: list[int] = []
        left_s = target_s - rank_s
        position = (
            len(queue.tests) if queue.tests and queue.tests[-1][0] > PROBE_S else bisect_left(queue.tests, (left_s, -1))
        )
        while position > 0:
            position -= 1
            rank_s, other = queue.tests[position]
            left_s -= rank_s % PROBE_S
            if left_s < 0:
                break
            chosen.append(other)
        return chosen

    def remove(self, index: int) -> float:
        """Take a test out, and return the slot seconds that it will probably take."""
        queue, rank_s, work_s = self._places.pop(index)
        queue.demand.remove(queue, rank_s, index)
        self._count(queue, -work_s, -1)
        return work_s

    def remove_longest(self, queue: Queue, tests: int) -> None:
        """Take out so many tests of a queue that need no host, the longest ones."""
        for _, index in queue.tests[len(queue.tests) - tests :]:
            del self._places[index]
        queue.demand.remove_longest(queue, tests)
        self._count(queue, 0.0, -tests)

    def hold(self, index: int, queue: Queue, rank_s: float) -> None:
        """Let an idle worker hold a test that is out already."""
        self._held[index] = rank_s
        queue.demand.hold(queue, rank_s, index)

    def unhold(self, index: int, queue: Queue) -> None:
        """Take out a test that an idle worker holds."""
        queue.demand.unhold(queue, self._held.pop(index), index)

    def update(self, indices: Iterable[int], estimate_of: Callable[[int], Estimate]) -> None:
        """Order those of these tests anew that wait and whose estimate has changed by more than a tenth.

        Tests without a host keep their order: they delay nothing, and there may be very many.
        """
        for index in indices:
            place = self._places.get(index)
            if place is None or place[0].demand.hostless:
                continue
            queue, rank_s, work_s = place
            estimate = estimate_of(index)
            if abs(rank_s - estimate.rank_s) > 0.1 * rank_s:
                self.remove(index)
                self.add(index, queue, estimate, probe=rank_s > PROBE_S)
                continue
            mean_s = estimate.mean_s * queue.needs.hosts
            if abs(work_s - mean_s) > 0.1 * work_s:
                self._places[index] = _Place(queue, rank_s, mean_s)
                self._count(queue, mean_s - work_s, 0)

    def _count(self, queue: Queue, work_s: float, tests: int) -> None:
        queue.demand.count_in(tests, work_s)
        self.work_s += work_s
        self.cpu_work_s += work_s * queue.cpus
        self.memory_work_s += work_s * queue.memory_mib
