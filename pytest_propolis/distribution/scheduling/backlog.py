"""The tests that have not started, by what they need."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

from .needs import Needs
from .planning.durations import Estimate

__all__ = ["Backlog", "Cell", "Queue", "Way"]

PROBE_S: Final = 1e6
"""Added to the rank of a test that is to show how its module behaves, so that it goes first."""

WIDE: Final = 0.2
"""How much longer a test counts for each further CPU that it needs: the wide ones find no room between others later."""

LAST: Final = 1 << 60


class Way(Enum):
    """How tests come to their hosts."""

    HOSTLESS = auto()
    NEXT = auto()
    """The next host that has room."""
    GATHERED = auto()
    """Several at the same time, or one that is emptied first."""

    @classmethod
    def of(cls, needs: Needs) -> Way:
        if needs.hosts == 0:
            return cls.HOSTLESS
        return cls.GATHERED if needs.hosts > 1 or needs.exclusive else cls.NEXT


class Queue:
    """Tests with the same needs, ordered by rank, the longest last."""

    __slots__ = ("cell", "cpus", "held", "memory_mib", "needs", "number", "tests", "weight")

    def __init__(self, cell: Cell, needs: Needs, number: int) -> None:
        self.cell: Final = cell
        self.needs: Final = needs
        self.cpus: Final = needs.cpus
        self.memory_mib: Final = needs.memory_mib
        self.number: Final = number
        self.weight: Final = 1 + WIDE * max(0, needs.cpus - 1)
        self.tests: list[tuple[float, int]] = []
        """(Rank in s, index) of those that any worker may run."""
        self.held: list[tuple[float, int]] = []
        """The same of those that an idle worker holds as its next."""


def _number(queue: Queue) -> int:
    return queue.number


def _longest(tests: list[tuple[float, int]], limit_s: float) -> int:
    """Return the position of the longest test that ranks no higher than limit_s, or -1. Probes come first."""
    rank_s = tests[-1][0]
    if rank_s <= limit_s or PROBE_S < rank_s <= PROBE_S + limit_s:
        return len(tests) - 1
    return bisect_right(tests, (limit_s, LAST)) - 1


class Cell:
    """Tests that the same hosts can run, other needs aside: those of one guest and one set of labels.

    Tests that take the next free host, tests for which hosts are gathered and tests without a host are in different
    cells.
    """

    __slots__ = (
        "count",
        "fastest",
        "filled",
        "guest",
        "held",
        "labels",
        "longest_s",
        "narrowest",
        "probes",
        "queues",
        "rate",
        "shortest_s",
        "way",
        "weight",
        "work_s",
    )

    def __init__(self, needs: Needs, way: Way) -> None:
        self.guest: Final = needs.guest
        self.labels: Final = needs.labels
        self.way: Final = way
        self.queues: list[Queue] = []
        self.filled: list[Queue] = []
        """Those with tests that any worker may run: most queues of a cell are empty soon."""
        self.fastest = 0.0
        """Speed of the fastest host that has its labels and its template; 0.0 if there is none."""
        self.count = 0
        self.held = 0
        """How many of its tests any worker may run, and how many an idle worker holds."""
        self.probes = 0
        """How many of them show how their modules behave."""
        self.work_s = 0.0
        """Slot seconds that its tests will probably take on hosts of speed 1.0."""
        self.rate = 0.0
        """Slots that run its tests now, each counted with its host's speed."""
        self.weight = 1.0
        """How much its tests count, for their length."""
        self.longest_s = 0.0
        self.narrowest = 0
        """Rank of its longest test, probes aside, and the fewest CPUs that one of its tests needs."""
        self.shortest_s = math.inf
        """None of its tests ranks lower; it may be out of date, and then too low."""

    def survey(self) -> None:
        """Look for its longest, its shortest and its narrowest test again."""
        longest_s, shortest_s, narrowest = 0.0, math.inf, LAST
        for queue in self.filled:
            if queue.cpus < narrowest:
                narrowest = queue.cpus
            first_s, rank_s = queue.tests[0][0], queue.tests[-1][0]
            if rank_s > PROBE_S:
                position = bisect_left(queue.tests, (PROBE_S, -1))
                first_s = min(first_s, queue.tests[position][0] - PROBE_S)
                rank_s = queue.tests[position - 1][0] if position > 0 else rank_s - PROBE_S
            if rank_s > longest_s:
                longest_s = rank_s
            if first_s < shortest_s:
                shortest_s = first_s
        self.longest_s, self.shortest_s, self.narrowest = longest_s, shortest_s, narrowest

    def best(self, cpus: int, memory_mib: int, limit_s: float, *, held: bool) -> tuple[Queue, int, float] | None:
        """Return the longest test that fits and ranks no higher than limit_s: its queue, its index and its rank in s.

        :param held: look among those that idle workers hold.
        """
        found: tuple[Queue, int, float] | None = None
        most = -math.inf
        if not held and self.shortest_s > limit_s:
            return None
        for queue in self.queues if held else self.filled:
            if queue.cpus > cpus or queue.memory_mib > memory_mib:
                continue
            tests = queue.held if held else queue.tests
            if not tests:
                continue
            rank_s, index = tests[-1]
            if rank_s > limit_s:
                if rank_s < PROBE_S and (tests[0][0] > limit_s or limit_s * queue.weight <= most):
                    continue
                position = _longest(tests, limit_s)
                if position < 0:
                    continue
                rank_s, index = tests[position]
            if rank_s * queue.weight > most:
                found, most = (queue, index, rank_s), rank_s * queue.weight
        return found

    def shortest(self, cpus: int, memory_mib: int) -> tuple[float, int] | None:
        """Return the shortest test that fits, as its rank in s and its index."""
        fitting = (queue for queue in self.filled if queue.cpus <= cpus and queue.memory_mib <= memory_mib)
        return min((queue.tests[0] for queue in fitting), default=None)


class _Place(NamedTuple):
    queue: Queue
    rank_s: float
    work_s: float


class Backlog:
    """All tests that have not started."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.hostless: list[Queue] = []
        self.work_s = 0.0
        """Slot seconds that its tests will probably take on hosts of speed 1.0."""
        self.cpu_work_s = 0.0
        """The same in CPU seconds."""
        self._cells: dict[tuple[str | None, frozenset[str], Way], Cell] = {}
        self._queues: dict[Needs, Queue] = {}
        self._places: dict[int, _Place] = {}

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
        if needs not in self._queues:
            key = (needs.guest, needs.labels, Way.of(needs))
            if key not in self._cells:
                self._cells[key] = Cell(needs, Way.of(needs))
                self.cells.append(self._cells[key])
            queues = self._cells[key].queues
            self._queues[needs] = Queue(self._cells[key], needs, len(queues))
            queues.append(self._queues[needs])
            if Way.of(needs) is Way.HOSTLESS:
                self.hostless.append(self._queues[needs])
        return self._queues[needs]

    def add(self, index: int, queue: Queue, estimate: Estimate, *, probe: bool = False) -> None:
        """Let a test wait."""
        rank_s = estimate.rank_s + PROBE_S if probe else estimate.rank_s
        work_s = estimate.mean_s * queue.needs.hosts
        if not queue.tests:
            insort(queue.cell.filled, queue, key=_number)
        insort(queue.tests, (rank_s, index))
        self._places[index] = _Place(queue, rank_s, work_s)
        self._count(queue, work_s, 1)
        cell = queue.cell
        cell.probes += probe
        cell.longest_s = max(cell.longest_s, estimate.rank_s)
        cell.shortest_s = min(cell.shortest_s, estimate.rank_s)
        cell.narrowest = min(cell.narrowest, queue.needs.cpus) if cell.count > 1 else queue.needs.cpus

    def wide(self, cpus: float, memory_mib: float, duration_s: float) -> Iterator[tuple[Queue, int, float]]:
        """Find the tests that need at least so much and run for longer than duration_s, each with its rank in s."""
        for queue in self._queues.values():
            needs = queue.needs
            if queue.cell.way is Way.NEXT and (needs.cpus >= cpus or needs.memory_mib >= memory_mib):
                least_s = duration_s * (queue.cell.fastest or 1.0)
                first = bisect_right(queue.tests, (least_s, LAST))
                yield from ((queue, index, rank_s) for rank_s, index in queue.tests[first:] if rank_s < PROBE_S)

    def shortest(self, can_run: Callable[[Needs], bool]) -> int | None:
        """Return the index of the shortest test that no worker holds, of those whose needs can be met."""
        for (_, index), needs in self._heads():
            if can_run(needs):
                return index
        return None

    def _heads(self) -> list[tuple[tuple[float, int], Needs]]:
        heads = [(queue.tests[0], queue.needs) for queue in self._queues.values() if queue.tests]
        return sorted(heads, key=lambda head: head[0])

    def count_between(self, guest: str, least_s: float, most_s: float) -> int:
        """Return how many tests of a guest, for which no hosts are gathered, rank from least_s to most_s."""
        return sum(
            bisect_right(queue.tests, (most_s, LAST)) - bisect_left(queue.tests, (least_s, -1))
            for cell in self.cells
            if cell.guest == guest and cell.way is Way.NEXT
            for queue in cell.queues
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
        del queue.tests[bisect_left(queue.tests, (rank_s, index))]
        self._count(queue, -work_s, -1)
        queue.cell.probes -= rank_s > PROBE_S
        if not queue.tests:
            queue.cell.filled.remove(queue)
        if rank_s >= queue.cell.longest_s or not queue.tests:
            queue.cell.survey()
        return work_s

    def hold(self, index: int, queue: Queue, rank_s: float) -> None:
        """Let an idle worker hold a test that is out already."""
        insort(queue.held, (rank_s, index))
        queue.cell.held += 1

    def unhold(self, index: int, queue: Queue) -> None:
        """Take out a test that an idle worker holds."""
        queue.held = [entry for entry in queue.held if entry[1] != index]
        queue.cell.held -= 1

    def update(self, indices: Iterable[int], estimate_of: Callable[[int], Estimate]) -> None:
        """Order those of these tests anew that wait and whose estimate has changed by more than a tenth.

        Tests without a host keep their order: they delay nothing, and there may be very many.
        """
        for index in indices:
            place = self._places.get(index)
            if place is None or place[0].cell.way is Way.HOSTLESS:
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
        cell = queue.cell
        cell.count += tests
        cell.work_s = cell.work_s + work_s if cell.count else 0.0
        self.work_s += work_s
        self.cpu_work_s += work_s * queue.needs.cpus
