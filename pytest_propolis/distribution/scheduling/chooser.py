"""Which test a host runs next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Final

from .demand import Demand, Queue
from .fleet import Fleet
from .host import HostState
from .needs import Needs
from .planning.reservation import Reservation

__all__ = ["Choice", "Chooser"]

SCARCITY: Final = 0.5
NO_PRESSURE: Final = 0.6
SLOPE: Final = 2.0
MOST_WEIGHT: Final = 3.0
"""Tests count more, at most MOST_WEIGHT, if few hosts have their labels: SCARCITY times the share of the slots that
cannot run them, and SLOPE times what these tests take of the time of such hosts, relative to all tests and
all hosts, above NO_PRESSURE."""

SLOW: Final = 0.8
"""A host is slow for a test if it has less than this share of the speed that another host has."""

SLOW_SHARE: Final = 0.4
"""A slow host runs only tests that take no more than this share of the time until the run ends: estimates err."""

SHORT_S: Final = 2.0
SHORT_SHARE: Final = 0.02
"""A test is short if it takes so long, or this share of the time until the run ends."""

_URGENCY: Final = attrgetter("stale_urgency")
"""None is stale when they are sorted."""

Choice = tuple[Queue, int]


class Chooser:
    """Chooses among the tests that a host can run now: the longest of the demand that is most behind."""

    def __init__(self, fleet: Fleet, reservation: Reservation) -> None:
        self._fleet = fleet
        self._reservation = reservation
        self.slack_s = 0.0
        """How long the run will probably last."""
        self.lenient = False
        """Whether slow hosts may run any test, since nothing else happens that could help it."""

    def weigh(self, demands: Sequence[Demand]) -> None:
        """Let the tests count more for which there are too few hosts with their labels."""
        work_s: dict[frozenset[str], float] = {}
        for demand in demands:
            work_s[demand.labels] = work_s.get(demand.labels, 0.0) + demand.work_s
        total_s = sum(work_s.values())
        weights = dict.fromkeys(work_s, 1.0)
        for labels, labelled_s in work_s.items():
            speed = self._fleet.speed_with(labels)
            if labels and speed and total_s:
                pressure = (labelled_s / speed) / (total_s / self._fleet.speed)
                scarcity = 1 - speed / self._fleet.speed
                weights[labels] = min(MOST_WEIGHT, 1 + SCARCITY * scarcity + SLOPE * max(0.0, pressure - NO_PRESSURE))
        for demand in demands:
            demand.weigh(weights[demand.labels])

    def best(self, state: HostState, *, held: bool = False, after: Needs | None = None) -> Choice | None:
        """Return the test that a host runs next, as its queue and its index.

        :param held: choose among those that idle workers hold, else among those that no worker holds.
        :param after: what will be free when the test starts, besides what is free now.
        """
        if held:
            return self._best_held(state)
        slots, cpus, memory_mib = state.slots, state.cpus, state.memory_mib
        if after is not None:
            slots, cpus, memory_mib = slots + 1, cpus + after.cpus, memory_mib + after.memory_mib
        gap_s = self._reservation.gap_s(state, slots) if state.building and not self.lenient else math.inf
        long_s = self._reservation.long_s
        ranked: list[Demand] = []
        first: Demand | None = None
        most = -1.0
        for demand in self._fleet.runnable(state):
            # Of a demand without tests, the narrowest one is wider than any host.
            if demand.narrowest <= cpus and (demand.shortest_s <= gap_s or demand.longest_s >= long_s or demand.probes):
                ranked.append(demand)
                urgency = demand.stale_urgency
                if urgency < 0:
                    urgency = demand.urgency()
                if urgency > most:
                    first, most = demand, urgency
        if first is None:
            return None
        # A CPU is kept for each other free slot, if there are tests that need no more.
        spare = max(min(1, cpus), cpus - (slots - 1))
        # The longest test of the first demand fits nearly always: then the others need not be sorted.
        found = self._best_of(state, first, spare, memory_mib, gap_s)
        if found is not None:
            return found[:2]
        if len(ranked) == 1 and spare == cpus:
            return None
        ranked.sort(key=_URGENCY, reverse=True)
        for most_cpus in (spare, cpus) if spare < cpus else (cpus,):
            for demand in ranked:
                found = self._best_of(state, demand, most_cpus, memory_mib, gap_s)
                if found is not None:
                    return found[:2]
        return None

    def _best_held(self, state: HostState) -> Choice | None:
        """Return the longest test that an idle worker holds and the host can begin."""
        gap_s = self._reservation.gap_s(state, state.slots) if state.building and not self.lenient else math.inf
        best: Choice | None = None
        most = 0.0
        for demand in self._fleet.runnable(state):
            if demand.held and -demand.held[0][0] * demand.weight > most:
                found = self._best_of(state, demand, state.cpus, state.memory_mib, gap_s, held=True)
                if found is not None and found[2] * demand.weight > most:
                    best, most = found[:2], found[2] * demand.weight
        return best

    def can_begin(self, state: HostState, queue: Queue, rank_s: float) -> bool:
        """Return whether a host may run a test now that an idle worker holds."""
        if not state.fits(queue.needs) or rank_s > self._limit_s(state, queue.fastest):
            return False
        gap_s = self._reservation.gap_s(state, state.slots) if state.building and not self.lenient else math.inf
        return not gap_s < rank_s < self._reservation.long_s and queue.demand in self._fleet.runnable(state)

    def following(self, state: HostState, cpus: int, memory_mib: int) -> int | None:
        """Return the index of the shortest test that may follow another one on a host, in the room that it leaves."""
        best: tuple[float, int] | None = None
        for demand in self._fleet.runnable(state):
            if demand.narrowest <= cpus and (best is None or demand.shortest_s <= best[0]):
                entry = demand.shortest(cpus, memory_mib)
                if entry is not None and (best is None or entry < best):
                    best = entry
        return best and best[1]

    def is_short(self, duration_s: float) -> bool:
        """Return whether it hardly matters when a test starts that takes so long."""
        return duration_s <= max(SHORT_S, SHORT_SHARE * self.slack_s)

    def _best_of(
        self, state: HostState, demand: Demand, cpus: int, memory_mib: int, gap_s: float, *, held: bool = False
    ) -> tuple[Queue, int, float] | None:
        """Return the longest test of a demand that a host may run: its queue, its index and its rank in s.

        :param gap_s: how long a test may take there that is not long.
        :param held: choose among those that idle workers hold.
        """
        best = demand.best_held if held else demand.best
        limit_s, long_s = self._limit_s(state, demand.fastest), self._reservation.long_s
        if limit_s < math.inf and demand.slowest < demand.fastest:
            best = partial(demand.best_of_each, lambda queue: self._limit_s(state, queue.fastest), held=held)
            limit_s = math.inf
        if gap_s < limit_s and not held and not demand.probes and demand.longest_s < long_s:
            limit_s = gap_s
        found = best(cpus, memory_mib, limit_s)
        if found is not None and gap_s < found[2] < long_s:
            found = best(cpus, memory_mib, min(limit_s, gap_s))
        return found

    def _limit_s(self, state: HostState, fastest: float) -> float:
        """Return the longest duration that a host may begin with, on a host of speed 1.0.

        :param fastest: the speed of the fastest host that can run such tests.
        """
        if self.lenient or state.speed >= SLOW * fastest:
            return math.inf
        return self.slack_s * state.speed * SLOW_SHARE
