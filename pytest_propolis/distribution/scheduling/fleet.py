"""The hosts of a run, and which of them can run what."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from itertools import islice

from .demand import Demand
from .host import HostKind, HostSpec, HostState
from .needs import Needs, Way

__all__ = ["Fleet"]


class Fleet:
    """All hosts, and the demands of tests that each can run with the templates that it has."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostState] = {}
        """By name, those that were lost too."""
        self.living: list[HostState] = []
        self.fastest_first: list[HostState] = []
        """The same, ordered by speed."""
        self.speed = 0.0
        """The slots of all of them, each counted with its host's speed."""
        self.slots = 0
        """The same, each counted as one."""
        self.version = 0
        """Changes when hosts, their templates or the kinds of tests do."""
        self._demands: list[Demand] = []
        self._demands_of: dict[str | None, list[Demand]] = {}
        """Those of each guest."""
        self._runnable: dict[str, list[Demand]] = {}
        self._having: dict[str | None, list[HostState]] = {}
        self._can_run: dict[Needs, bool] = {}
        self._by_kind: dict[HostKind, list[HostState]] = {}
        self._speed_with: dict[frozenset[str], float] = {}

    def add(self, host: HostSpec) -> HostState:
        """Let a host join, or come back with what it has now."""
        known = self.hosts.get(host.name)
        state = HostState(host, known.order if known else len(self.hosts))
        self.hosts[host.name] = state
        self.living.append(state)
        self._by_kind.setdefault(host.kind, []).append(state)
        insort(self.fastest_first, state, key=lambda state: (-state.speed, state.order))
        self.speed += state.speed * host.slots
        self.slots += host.slots
        self._having.clear()
        self._can_run.clear()
        self._speed_with.clear()
        self.refresh(state, joined=True)
        return state

    def lose(self, name: str) -> None:
        """Let a host go, with all that it has."""
        state = self.hosts[name]
        state.alive = False
        self.living.remove(state)
        self._by_kind[state.host.kind].remove(state)
        self.fastest_first.remove(state)
        self.slots -= state.host.slots
        self._having.clear()
        self._can_run.clear()
        self._speed_with.clear()
        self.speed = sum(state.speed * state.host.slots for state in self.living)
        self._runnable[name] = []
        self._rank_demands()
        self.version += 1

    def know(self, demands: Sequence[Demand]) -> None:
        """Let hosts have tests of these demands, of which there may be more than before."""
        self._demands = list(demands)
        self._demands_of.clear()
        self._speed_with.clear()
        for demand in demands:
            self._demands_of.setdefault(demand.guest, []).append(demand)
        self._rank_demands()
        for state in self.living:
            self.refresh(state)

    def refresh(self, state: HostState, *, joined: bool = False) -> None:
        """Look again which tests a host can run, since it has other templates, or has joined."""
        self.version += 1
        for guest in state.templates:
            self._having.pop(guest, None)
        runnable = []
        labels = state.host.labels
        for having in (None, *state.templates):
            for demand in self._demands_of.get(having, ()):
                if demand.labels <= labels:
                    runnable.append(demand)
                    if joined or state.speed > demand.slowest:
                        self._rank(demand, state)
        next_host = [demand for demand in runnable if demand.way is Way.NEXT]
        self._runnable[state.host.name] = sorted(next_host, key=lambda demand: demand.number)

    def runnable(self, state: HostState) -> list[Demand]:
        """Return the demands whose tests a host can run now, one by one."""
        return self._runnable[state.host.name]

    def warm(self, needs: Needs) -> list[HostState]:
        """Return the hosts that have the template and, if they did nothing else, room for a test."""
        return [state for state in self.having(needs.guest) if state.could_fit(needs)]

    def is_warm(self, needs: Needs) -> bool:
        """Return whether there are enough hosts for a test that have its template."""
        warm = (state for state in self.having(needs.guest) if state.could_fit(needs))
        return len(list(islice(warm, needs.hosts))) == needs.hosts

    def having(self, guest: str | None) -> list[HostState]:
        """Return the hosts that have a template, ordered by speed; all hosts for None."""
        found = self._having.get(guest)
        if found is None:
            found = self._having[guest] = [s for s in self.fastest_first if guest is None or guest in s.templates]
        return found

    def fastest(self, needs: Needs) -> float:
        """Return the speed of the fastest host that can begin a test if it does nothing else; 0.0 if there is none."""
        return next((state.speed for state in self.having(needs.guest) if state.could_fit(needs)), 0.0)

    def able(self, needs: Needs) -> list[HostState]:
        """Return the hosts that would have room for a test if they did nothing else."""
        return [state for state in self.living if state.could_fit(needs)]

    def can_run(self, needs: Needs) -> bool:
        """Return whether there are enough hosts that would have room for a test if they did nothing else."""
        found = self._can_run.get(needs)
        if found is None:
            able = sum(len(alike) for alike in self._by_kind.values() if alike and alike[0].could_fit(needs))
            found = self._can_run[needs] = able >= needs.hosts
        return found

    def share(self, slots: float) -> tuple[float, float]:
        """Return the CPUs and the memory in MiB that so many slots have on average."""
        total = max(1, self.slots)
        cpus = sum(state.host.cpus for state in self.living)
        memory_mib = sum(state.host.memory_mib for state in self.living)
        return slots * cpus / total, slots * memory_mib / total

    def speed_with(self, labels: frozenset[str]) -> float:
        """Return the slots of the hosts that could run any of the tests with these labels, each with its speed."""
        speed = self._speed_with.get(labels)
        if speed is None:
            least = {
                (q.cpus, q.memory_mib) for demand in self._demands if demand.labels == labels for q in demand.queues
            }
            speed = self._speed_with[labels] = sum(
                state.speed * state.host.slots
                for state in self.living
                if labels <= state.host.labels
                and any(cpus <= state.host.cpus and mib <= state.host.memory_mib for cpus, mib in least)
            )
        return speed

    def _rank_demands(self) -> None:
        for demand in self._demands:
            self._rank(demand)

    def _rank(self, demand: Demand, more: HostState | None = None) -> None:
        """Find out how fast the tests of a demand can run.

        :param more: the only host that can begin its tests and could not before; None if anything may have changed.
        """
        for queue in demand.queues:
            if more is None or (more.speed > queue.fastest and more.could_fit(queue.needs)):
                queue.fastest = self.fastest(queue.needs)
        speeds = [queue.fastest for queue in demand.queues if self.can_run(queue.needs)]
        demand.slowest, demand.fastest = min(speeds, default=0.0), max(speeds, default=0.0)
