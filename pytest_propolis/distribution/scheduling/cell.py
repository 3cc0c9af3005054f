"""Tests that the same hosts can run, in the orders in which they are looked for."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from enum import Enum, auto
from typing import Any, Final

from .needs import Needs

__all__ = ["LAST", "PROBE_S", "Cell", "Lane", "Queue", "Way"]

PROBE_S: Final = 1e6
"""Added to the rank of a test that is to show how its module behaves, so that it goes first."""

WIDE: Final = 0.2
"""How much longer a test counts for each further CPU that it needs: the wide ones find no room between others later."""

LENGTH: Final = 4.0
"""How much more the longest test of a cell counts than the time in which the cell would be done at its present rate."""

FEW: Final = 16
"""Among how many tests with the same CPUs one is looked for that finds enough memory, before all queues are asked."""

LAST: Final = 1 << 60

UNKNOWN: Final = -1.0


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

    __slots__ = ("cell", "held", "lane", "memory_mib", "needs", "tests")

    def __init__(self, cell: Cell, needs: Needs) -> None:
        self.cell: Final = cell
        self.needs: Final = needs
        self.memory_mib: Final = needs.memory_mib
        self.tests: list[tuple[float, int]] = []
        """(Rank in s, index) of those that any worker may run."""
        self.held: list[tuple[float, int]] = []
        """The same of those that an idle worker holds as its next."""
        self.lane: Final = cell.lane(needs)
        """The same of all queues of the cell whose tests need as many CPUs."""
        if self.lane is not None:
            self.lane.queues.append(self)
        cell.queues.append(self)


class Lane:
    """Tests of a cell that need the same CPUs, whatever memory they need, ordered by rank, the longest last."""

    __slots__ = ("cpus", "least_mib", "queues", "tests", "weight")

    def __init__(self, cpus: int) -> None:
        self.cpus: Final = cpus
        self.weight: Final = weight(cpus)
        self.tests: list[tuple[float, int, Queue]] = []
        """Those that any worker may run."""
        self.queues: list[Queue] = []
        self.least_mib: float = LAST
        """The least memory that one of them needs."""

    def survey(self) -> None:
        """Look again for the least memory that a test needs."""
        self.least_mib = min((queue.memory_mib for queue in self.queues if queue.tests), default=LAST)

    @property
    def longest_s(self) -> float:
        """The highest rank of its tests; probes count as if they were none."""
        rank_s = self.tests[-1][0]
        if rank_s > PROBE_S:
            position = bisect_left(self.tests, (PROBE_S,))
            return self.tests[position - 1][0] if position > 0 else rank_s - PROBE_S
        return rank_s

    @property
    def shortest_s(self) -> float:
        """The lowest rank of its tests, or that of its first probe if that is lower."""
        rank_s = self.tests[0][0]
        if self.tests[-1][0] > PROBE_S:
            position = bisect_left(self.tests, (PROBE_S,))
            return min(rank_s, self.tests[position][0] - PROBE_S)
        return rank_s

    def best(self, memory_mib: int, limit_s: float) -> tuple[Queue, int, float] | None:
        """Return the longest test that fits and ranks no higher than limit_s. Probes come first."""
        tests = self.tests
        rank_s, index, queue = tests[-1]
        if (rank_s <= limit_s or PROBE_S < rank_s <= PROBE_S + limit_s) and queue.memory_mib <= memory_mib:
            return queue, index, rank_s
        last = _longest(tests, limit_s)
        for position in range(last, max(-1, last - FEW), -1):
            rank_s, index, queue = tests[position]
            if limit_s < rank_s < PROBE_S:
                break
            if queue.memory_mib <= memory_mib:
                return queue, index, rank_s
        return self._best_of_queues(memory_mib, limit_s) if last >= 0 else None

    def _best_of_queues(self, memory_mib: int, limit_s: float) -> tuple[Queue, int, float] | None:
        found: tuple[float, int, Queue] | None = None
        for queue in self.queues:
            if queue.tests and queue.memory_mib <= memory_mib:
                position = _longest(queue.tests, limit_s)
                if position >= 0 and (found is None or queue.tests[position] > found[:2]):
                    found = *queue.tests[position], queue
        return found and (found[2], found[1], found[0])

    def shortest(self, memory_mib: int) -> tuple[float, int] | None:
        """Return the shortest test that fits, as its rank in s and its index."""
        return min((q.tests[0] for q in self.queues if q.tests and q.memory_mib <= memory_mib), default=None)


def _longest(tests: list[tuple[float, int]] | list[tuple[float, int, Queue]], limit_s: float) -> int:
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
        "_urgency",
        "count",
        "fastest",
        "guest",
        "held",
        "labels",
        "lanes",
        "longest_s",
        "narrowest",
        "number",
        "probes",
        "queues",
        "rate",
        "shortest_s",
        "way",
        "weight",
        "work_s",
    )

    def __init__(self, needs: Needs, way: Way, number: int) -> None:
        self.guest: Final = needs.guest
        self.labels: Final = needs.labels
        self.way: Final = way
        self.number: Final = number
        """Its rank among all cells: of two that are equal, the first one is chosen."""
        self.queues: list[Queue] = []
        self.lanes: list[Lane] = []
        """By the CPUs that their tests need, the fewest first; only of tests that take the next free host."""
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
        self.narrowest = LAST
        """Rank of its longest test, probes aside, and the fewest CPUs that one of its tests needs."""
        self.shortest_s = math.inf
        """None of its tests ranks lower, if no hosts are gathered for them."""
        self._urgency = UNKNOWN

    def lane(self, needs: Needs) -> Lane | None:
        """Return the lane of tests with these needs; None if hosts are gathered for them, or they need none."""
        if self.way is not Way.NEXT:
            return None
        for lane in self.lanes:
            if lane.cpus == needs.cpus:
                return lane
        lane = Lane(needs.cpus)
        insort(self.lanes, lane, key=lambda lane: lane.cpus)
        return lane

    def add(self, queue: Queue, rank_s: float, index: int) -> None:
        """Let a test wait."""
        insort(queue.tests, (rank_s, index))
        lane = queue.lane
        if lane is not None:
            insort(lane.tests, (rank_s, index, queue))
            if queue.memory_mib < lane.least_mib:
                lane.least_mib = queue.memory_mib
        probe = rank_s > PROBE_S
        self.probes += probe
        longest_s = rank_s - PROBE_S if probe else rank_s
        if longest_s > self.longest_s:
            self.longest_s = longest_s
        if longest_s < self.shortest_s:
            self.shortest_s = longest_s
        if queue.needs.cpus < self.narrowest:
            self.narrowest = queue.needs.cpus

    def remove(self, queue: Queue, rank_s: float, index: int) -> None:
        """Take a test out."""
        _take_out(queue.tests, (rank_s, index))
        lane = queue.lane
        if lane is not None:
            _take_out(lane.tests, (rank_s, index))
            if not queue.tests and queue.memory_mib <= lane.least_mib:
                lane.survey()
        self.probes -= rank_s > PROBE_S
        if rank_s >= self.longest_s or rank_s <= self.shortest_s or not queue.tests:
            self._survey()

    def count_in(self, tests: int, work_s: float) -> None:
        """Count tests that wait, or wait no more, and the slot seconds that they will probably take."""
        self.count += tests
        self.work_s = self.work_s + work_s if self.count else 0.0
        self._urgency = UNKNOWN

    def run(self, slots: float) -> None:
        """Count slots that run its tests, or run them no more, each with its host's speed."""
        self.rate += slots
        self._urgency = UNKNOWN

    def weigh(self, weight: float) -> None:
        """Let its tests count more or less for their length."""
        self.weight = weight
        self._urgency = UNKNOWN

    @property
    def urgency(self) -> float:
        """How far it is behind: the cell with the highest one is served first."""
        if self._urgency < 0:
            lasts_s = self.work_s / self.rate if self.rate > 1.0 else self.work_s
            self._urgency = max(0.0, (lasts_s + LENGTH * self.longest_s) * self.weight)
        return self._urgency

    def _survey(self) -> None:
        """Look for its longest and its narrowest test again."""
        self._urgency = UNKNOWN
        filled = [lane for lane in self.lanes if lane.tests]
        if self.way is Way.NEXT:
            self.narrowest = filled[0].cpus if filled else LAST
            self.longest_s = max([0.0, *[lane.longest_s for lane in filled]])
            self.shortest_s = min([lane.shortest_s for lane in filled], default=math.inf)
        else:
            queues = [queue for queue in self.queues if queue.tests]
            self.narrowest = min([queue.needs.cpus for queue in queues], default=LAST)
            self.longest_s = max([0.0, *[queue.tests[-1][0] for queue in queues]])

    def best(self, cpus: int, memory_mib: int, limit_s: float) -> tuple[Queue, int, float] | None:
        """Return the longest test that fits and ranks no higher than limit_s: its queue, its index and its rank."""
        found: tuple[Queue, int, float] | None = None
        most = -math.inf
        for lane in self.lanes:
            if lane.cpus > cpus:
                break
            tests = lane.tests
            if not tests or lane.least_mib > memory_mib or tests[-1][0] * lane.weight <= most:
                continue
            if tests[0][0] > limit_s and tests[-1][0] < PROBE_S:
                continue
            here = lane.best(memory_mib, limit_s)
            if here is not None and here[2] * lane.weight > most:
                found, most = here, here[2] * lane.weight
        return found

    def best_held(self, cpus: int, memory_mib: int, limit_s: float) -> tuple[Queue, int, float] | None:
        """Return the same of the tests that idle workers hold."""
        found: tuple[Queue, int, float] | None = None
        most = -math.inf
        for queue in self.queues:
            if not queue.held or queue.needs.cpus > cpus or queue.memory_mib > memory_mib:
                continue
            position = bisect_right(queue.held, (limit_s, LAST)) - 1
            if position >= 0:
                rank_s, index = queue.held[position]
                weighed_s = rank_s * weight(queue.needs.cpus)
                if weighed_s > most:
                    found, most = (queue, index, rank_s), weighed_s
        return found

    def shortest(self, cpus: int, memory_mib: int) -> tuple[float, int] | None:
        """Return the shortest test that fits, as its rank in s and its index."""
        found = [lane.shortest(memory_mib) for lane in self.lanes if lane.cpus <= cpus and lane.least_mib <= memory_mib]
        return min([entry for entry in found if entry is not None], default=None)


def weight(cpus: int) -> float:
    """Return how much longer a test counts that needs so many CPUs."""
    return 1 + WIDE * max(0, cpus - 1)


def _take_out(tests: list[Any], entry: tuple[float, int]) -> None:
    """Remove a test from an ordered list, nearly always the last one."""
    if tests[-1][:2] == entry:
        tests.pop()
    else:
        del tests[bisect_left(tests, entry)]
