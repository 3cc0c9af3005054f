"""Tests that the same hosts can run, in the orders in which they are looked for."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Final

from .host import HostSpec
from .needs import Needs, Way

__all__ = ["LAST", "PROBE_S", "Demand", "Queue"]

PROBE_S: Final = 1e6
"""Added to the rank of a test that is to show how its module behaves, so that it goes first."""

WIDE: Final = 0.2
"""How much longer a test counts for each further CPU that it needs: the wide ones find no room between others later."""

LENGTH: Final = 4.0
"""How much more the longest test of a demand counts than the time in which all would be done at the present rate."""

LAST: Final = 1 << 60

UNKNOWN: Final = -1.0


class Queue:
    """Tests with the same needs, ordered by rank, the longest last."""

    __slots__ = (
        "cpus",
        "demand",
        "fastest",
        "group",
        "held",
        "key",
        "memory_mib",
        "needs",
        "number",
        "tests",
        "weight",
    )

    def __init__(self, demand: Demand, needs: Needs) -> None:
        self.demand: Final = demand
        self.needs: Final = needs
        self.number: Final = len(demand.queues)
        """Its rank among the queues of the demand: of two that are equal, the first one is chosen."""
        self.cpus: Final = needs.cpus
        self.weight: Final = 1 + WIDE * max(0, needs.cpus - 1)
        self.memory_mib: Final = needs.memory_mib
        self.fastest = 0.0
        """Speed of the fastest host that can begin its tests if it does nothing else; 0.0 if there is none."""
        self.key = 0.0
        """By what it is ordered while it has tests: its longest test, which counts by its weight, first."""
        self.tests: list[tuple[float, int]] = []
        """(Rank in s, index) of those that any worker may run."""
        self.held: list[tuple[float, int]] = []
        """The same of those that an idle worker holds as its next."""
        self.group: Final = demand.enroll(self)
        """Where it is while it has tests that any worker may run."""


def _longest(tests: list[tuple[float, int]], limit_s: float) -> int:
    """Return the position of the longest test that ranks no higher than limit_s, or -1. Probes come first."""
    rank_s = tests[-1][0]
    if rank_s <= limit_s or PROBE_S < rank_s <= PROBE_S + limit_s:
        return len(tests) - 1
    return bisect_right(tests, (limit_s, LAST)) - 1


def _span(tests: list[tuple[float, int]]) -> tuple[float, float]:
    """Return the ranks of the shortest and the longest test, probes aside if there are others."""
    first_s, rank_s = tests[0][0], tests[-1][0]
    if rank_s > PROBE_S:
        position = bisect_left(tests, (PROBE_S, -1))
        first_s = min(first_s, tests[position][0] - PROBE_S)
        rank_s = tests[position - 1][0] if position > 0 else rank_s - PROBE_S
    return first_s, rank_s


class Demand:
    """Tests that the same hosts can run, other needs aside: those of one guest and one set of labels.

    Tests that take the next free host, tests for which hosts are gathered and tests without a host belong to
    different demands.
    """

    __slots__ = (
        "_groups",
        "count",
        "fastest",
        "gathered",
        "guest",
        "held",
        "hostless",
        "labels",
        "longest_s",
        "narrowest",
        "number",
        "probes",
        "queues",
        "rate",
        "shortest_s",
        "slowest",
        "stale_urgency",
        "way",
        "weight",
        "work_s",
    )

    def __init__(self, needs: Needs, way: Way, number: int) -> None:
        self.guest: Final = needs.guest
        self.labels: Final = needs.labels
        self.way: Final = way
        self.hostless: Final = way is Way.HOSTLESS
        self.gathered: Final = way is Way.GATHERED
        """Members of an enumeration are slow to look up."""
        self.number: Final = number
        """Its rank among all demands: of two that are equal, the first one is chosen."""
        self.queues: list[Queue] = []
        self._groups: list[tuple[int, list[tuple[float, int, Queue]]]] = []
        """By the CPUs that their tests need, the fewest first: (key, number, queue) of those with tests that any worker
        may run. So the first of each group has its longest test."""
        self.fastest = 0.0
        self.slowest = 0.0
        """The highest and the lowest of what its queues have as their fastest, those aside that no host can run."""
        self.count = 0
        """How many of its tests any worker may run."""
        self.held: list[tuple[float, int, Queue]] = []
        """(Key, number, queue) of those with tests that idle workers hold, by the longest such test."""
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
        """Rank of its shortest test."""
        self.stale_urgency = UNKNOWN
        """Its `urgency`, or UNKNOWN if that is to be found out again. It is read far more often than it changes."""

    def add(self, queue: Queue, rank_s: float, index: int) -> None:
        """Let a test wait."""
        entry = (rank_s, index)
        tests = queue.tests
        if not tests:
            tests.append(entry)
            self._enter(queue)
        elif entry > tests[-1]:
            self._leave(queue)
            tests.append(entry)
            self._enter(queue)
        else:
            insort(tests, entry)
        probe = rank_s > PROBE_S
        self.probes += probe
        longest_s = rank_s - PROBE_S if probe else rank_s
        if longest_s > self.longest_s:
            self.longest_s = longest_s
        if longest_s < self.shortest_s:
            self.shortest_s = longest_s
        if queue.cpus < self.narrowest:
            self.narrowest = queue.cpus

    def extend(self, queue: Queue, ranked: Iterable[tuple[float, int]]) -> None:
        """Let many tests wait, none of which is a probe: (rank in s, index) of each."""
        if queue.tests:
            self._leave(queue)
        queue.tests += ranked
        queue.tests.sort()
        self._enter(queue)
        self._survey()

    def remove_longest(self, queue: Queue, tests: int) -> None:
        """Take out so many tests of a queue, the longest ones."""
        kept = len(queue.tests) - tests
        self._leave(queue)
        self.probes -= sum(rank_s > PROBE_S for rank_s, _ in queue.tests[kept:])
        del queue.tests[kept:]
        if queue.tests:
            self._enter(queue)
        self._survey()

    def remove(self, queue: Queue, rank_s: float, index: int) -> None:
        """Take a test out."""
        entry = (rank_s, index)
        tests = queue.tests
        if tests[-1] == entry:
            tests.pop()
            if not tests:
                self._leave(queue)
            elif tests[-1][0] != rank_s:
                self._leave(queue)
                self._enter(queue)
        else:
            del tests[bisect_left(tests, entry)]
        if rank_s > PROBE_S:
            self.probes -= 1
            self._survey()
        elif self.probes:
            if rank_s >= self.longest_s or rank_s <= self.shortest_s or not tests:
                self._survey()
        elif rank_s <= self.shortest_s:
            self._survey()
        elif rank_s >= self.longest_s or not tests:
            self._survey_longest()

    def _leave(self, queue: Queue) -> None:
        """Take a queue out of the order."""
        del queue.group[bisect_left(queue.group, (queue.key, queue.number))]

    def _enter(self, queue: Queue) -> None:
        """Let a queue be in the order by its longest test."""
        queue.key = -queue.tests[-1][0] * queue.weight
        insort(queue.group, (queue.key, queue.number, queue))

    def enroll(self, queue: Queue) -> list[tuple[float, int, Queue]]:
        """Let it have a queue, and return the group of those whose tests need as many CPUs."""
        self.queues.append(queue)
        for cpus, group in self._groups:
            if cpus == queue.cpus:
                return group
        self._groups.append((queue.cpus, []))
        group = self._groups[-1][1]
        self._groups.sort(key=itemgetter(0))
        return group

    def count_in(self, tests: int, work_s: float) -> None:
        """Count tests that wait, or wait no more, and the slot seconds that they will probably take."""
        self.count += tests
        self.work_s = self.work_s + work_s if self.count else 0.0
        self.stale_urgency = UNKNOWN

    def run(self, slots: float) -> None:
        """Count slots that run its tests, or run them no more, each with its host's speed."""
        self.rate += slots
        self.stale_urgency = UNKNOWN

    def weigh(self, weight: float) -> None:
        """Let its tests count more or less for their length."""
        self.weight = weight
        self.stale_urgency = UNKNOWN

    def urgency(self) -> float:
        """Find out how far it is behind: the demand with the highest one is served first."""
        if self.stale_urgency < 0:
            lasts_s = self.work_s / self.rate if self.rate > 1.0 else self.work_s
            self.stale_urgency = max(0.0, (lasts_s + LENGTH * self.longest_s) * self.weight)
        return self.stale_urgency

    def _survey_longest(self) -> None:
        """Look for its longest and its narrowest test again, where it has no probes and its shortest is known."""
        self.stale_urgency = UNKNOWN
        longest_s, narrowest = 0.0, LAST
        for cpus, group in self._groups:
            if group:
                if narrowest == LAST:
                    narrowest = cpus
                rank_s = group[0][2].tests[-1][0]
                if rank_s > longest_s:
                    longest_s = rank_s
        self.longest_s, self.narrowest = longest_s, narrowest
        if narrowest == LAST:
            self.shortest_s = math.inf

    def _survey(self) -> None:
        """Look for its longest, its shortest and its narrowest test again."""
        self.stale_urgency = UNKNOWN
        longest_s, shortest_s, narrowest = 0.0, math.inf, LAST
        for _, _, queue in self._filled():
            if queue.cpus < narrowest:
                narrowest = queue.cpus
            first_s, rank_s = _span(queue.tests)
            if rank_s > longest_s:
                longest_s = rank_s
            if first_s < shortest_s:
                shortest_s = first_s
        self.longest_s, self.shortest_s, self.narrowest = longest_s, shortest_s, narrowest

    def best(self, cpus: int, memory_mib: int, limit_s: float) -> tuple[Queue, int, float] | None:
        """Return the longest test that fits and ranks no higher than limit_s: its queue, its index and its rank."""
        found: tuple[Queue, int, float] | None = None
        most = -math.inf
        for group_cpus, group in self._groups:
            if group_cpus > cpus:
                break
            for key, number, queue in group:
                if -key < most:
                    break
                if queue.memory_mib > memory_mib:
                    continue
                tests = queue.tests
                rank_s, index = tests[-1]
                if rank_s > limit_s:
                    if rank_s < PROBE_S and (tests[0][0] > limit_s or limit_s * queue.weight < most):
                        continue
                    position = _longest(tests, limit_s)
                    if position < 0:
                        continue
                    rank_s, index = tests[position]
                weighed_s = rank_s * queue.weight
                if weighed_s > most or (found is not None and weighed_s == most and number < found[0].number):
                    found, most = (queue, index, rank_s), weighed_s
        return found

    def best_of_each(
        self, limit_of: Callable[[Queue], float], cpus: int, memory_mib: int, limit_s: float, *, held: bool
    ) -> tuple[Queue, int, float] | None:
        """Return what `best` or `best_held` do, where each queue has a limit of its own, too."""
        found: tuple[Queue, int, float] | None = None
        most = -math.inf
        for queue in self.queues:
            tests = queue.held if held else queue.tests
            if tests and queue.cpus <= cpus and queue.memory_mib <= memory_mib:
                position = _longest(tests, min(limit_s, limit_of(queue)))
                if position >= 0 and tests[position][0] * queue.weight > most:
                    rank_s, index = tests[position]
                    found, most = (queue, index, rank_s), rank_s * queue.weight
        return found

    def span_s(self, longest_s: float) -> float:
        """Return how long its longest test takes at least on the hosts that there are.

        :param longest_s: how long a test takes at most, as far as is known.
        """
        if self.slowest == self.fastest:
            return min(self.longest_s, longest_s) / (self.fastest or 1.0)
        spans = (min(_span(queue.tests)[1], longest_s) / (queue.fastest or 1.0) for _, _, queue in self._filled())
        return max(spans, default=0.0)

    def suits(self, host: HostSpec) -> bool:
        """Return whether a host could run any of its tests if it did nothing else."""
        return any(host.could_fit(queue.needs) for queue in self.queues if queue.tests or queue.held)

    def _filled(self) -> Iterator[tuple[float, int, Queue]]:
        return chain.from_iterable(group for _, group in self._groups)

    def hold(self, queue: Queue, rank_s: float, index: int) -> None:
        """Let an idle worker hold a test."""
        self._leave_held(queue)
        insort(queue.held, (rank_s, index))
        self._enter_held(queue)

    def unhold(self, queue: Queue, rank_s: float, index: int) -> None:
        """Take out a test that an idle worker holds."""
        self._leave_held(queue)
        del queue.held[bisect_left(queue.held, (rank_s, index))]
        self._enter_held(queue)

    def _leave_held(self, queue: Queue) -> None:
        if queue.held:
            del self.held[bisect_left(self.held, (-queue.held[-1][0] * queue.weight, queue.number))]

    def _enter_held(self, queue: Queue) -> None:
        if queue.held:
            insort(self.held, (-queue.held[-1][0] * queue.weight, queue.number, queue))

    def best_held(self, cpus: int, memory_mib: int, limit_s: float) -> tuple[Queue, int, float] | None:
        """Return the longest of the tests that idle workers hold, that fits and ranks no higher than limit_s."""
        found: tuple[Queue, int, float] | None = None
        most = -math.inf
        for key, _, queue in self.held:
            if -key <= most:
                break
            if queue.cpus > cpus or queue.memory_mib > memory_mib:
                continue
            rank_s, index = queue.held[-1]
            if rank_s > limit_s:
                position = bisect_right(queue.held, (limit_s, LAST)) - 1
                if position < 0:
                    continue
                rank_s, index = queue.held[position]
            if rank_s * queue.weight > most:
                found, most = (queue, index, rank_s), rank_s * queue.weight
        return found

    def shortest(self, cpus: int, memory_mib: int) -> tuple[float, int] | None:
        """Return the shortest test that fits, as its rank in s and its index."""
        found: tuple[float, int] | None = None
        for group_cpus, group in self._groups:
            if group_cpus > cpus:
                break
            for _, _, queue in group:
                if queue.memory_mib <= memory_mib and (found is None or queue.tests[0] < found):
                    found = queue.tests[0]
        return found
