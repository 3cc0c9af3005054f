"""Where templates are made: before anything runs, and where more of them pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from ..backlog import Backlog
from ..demand import Demand
from ..fleet import Fleet
from ..host import HostKind, HostState

__all__ = ["TemplatePlanner"]

SHARE: Final = 0.05
"""Of a host's slot time that templates may take: what more kinds of tests to choose from are worth."""

HASTE_S: Final = 3.0
"""By how much sooner the first template of a host must be there to be worth another template."""

OPENING_S: Final = 10.0
"""For how long, at least, there should be tests of the guest with which a host begins."""

GAIN: Final = 1.2
"""How much longer a guest's tests must last than its template takes, for another template to pay."""

URGENT_S: Final = 1e6

Build = tuple[HostState, str]


class TemplatePlanner:
    """Chooses guests for hosts.

    :param build_s: guest -> how long its template takes on a host of speed 1.0.
    """

    def __init__(self, fleet: Fleet, backlog: Backlog, build_s: Mapping[str, float]) -> None:
        self._fleet = fleet
        self._backlog = backlog
        self._build_s = build_s
        self._version = -1

    def first(self, hosts: Sequence[HostState], span_s: float) -> list[Build]:
        """Choose the guests with which idle hosts begin, in order, for a run that will take about span_s."""
        demands = [demand for demand in self._backlog.demands if demand.count and demand.guest is not None]
        if not demands or not self._fleet.speed:
            return []
        return _FirstPlan(self._fleet, demands, self._build_s, span_s).builds(hosts)

    def further(self, idle: Sequence[HostState]) -> list[Build]:
        """Choose guests whose templates pay on idle hosts, and those without which a test cannot run.

        The latter are made on hosts that are busy, too, as soon as these have a slot.
        """
        builds = self._needed()
        fastest = max((state.speed for state in idle), default=1.0)
        wanted = [
            (demand, lasts_s)
            for demand in self._backlog.demands
            if demand.count
            and demand.guest is not None
            and (lasts_s := demand.work_s / max(demand.rate, 1.0)) > GAIN * self._build_s[demand.guest] / fastest
        ]
        taken = set(builds)
        for state in idle:
            guest = self._most_wanted(state, wanted)
            if guest is not None and (state, guest) not in taken:
                builds.append((state, guest))
        return builds

    def _needed(self) -> list[Build]:
        """What must be built so that all tests can run somewhere, if something has changed since it was asked last."""
        if self._fleet.version == self._version:
            return []
        self._version = self._fleet.version
        having: dict[str, list[HostState]] = {}
        for state in self._fleet.living:
            for guest in (*state.templates, *state.building):
                having.setdefault(guest, []).append(state)
        return [
            (state, demand.guest)
            for demand in self._backlog.demands
            if demand.guest is not None and (demand.count or demand.held)
            for state in self._missing_hosts(demand, having.get(demand.guest, []))
        ]

    def _missing_hosts(self, demand: Demand, having: list[HostState]) -> list[HostState]:
        """Hosts that must make a template, besides those having it, so that all tests of a demand can run."""
        missing: list[HostState] = []
        having = [state for state in having if demand.labels <= state.host.labels]
        for queue in demand.queues:
            if queue.tests or queue.held:
                fitting = (state for state in (*having, *missing) if state.could_fit(queue.needs))
                lacking = queue.needs.hosts - len(list(islice(fitting, queue.needs.hosts)))
                if lacking > 0:
                    spare = [s for s in self._fleet.able(queue.needs) if s not in having and s not in missing]
                    spare.sort(key=lambda s: (len(s.building), -s.slots, -s.speed, s.order))
                    missing += spare[:lacking]
        return missing

    def _most_wanted(self, state: HostState, wanted: list[tuple[Demand, float]]) -> str | None:
        best: tuple[float, str] | None = None
        for demand, lasts_s in wanted:
            guest = demand.guest
            if guest is None or has(state, guest) or not demand.labels <= state.host.labels:
                continue
            gain = lasts_s - GAIN * self._build_s[guest] / state.speed
            if gain > 0 and (best is None or gain > best[0]) and demand.suits(state.host):
                best = (gain, guest)
        return best and best[1]


def has(state: HostState, guest: str | None) -> bool:
    """Return whether a host has a template, or will have it."""
    return guest is None or guest in state.templates or guest in state.building


class _FirstPlan:
    """Divides the work among hosts by guest, as if it were fluid."""

    def __init__(self, fleet: Fleet, demands: list[Demand], build_s: Mapping[str, float], span_s: float) -> None:
        self._fleet = fleet
        self._demands = demands
        self._build_s = build_s
        self._span_s = span_s
        self._scarcity = {
            labels: fleet.speed / max(fleet.speed_with(labels), 1e-9)
            for labels in {demand.labels for demand in demands}
        }
        spare = fleet.speed * span_s / max(1e-9, sum(demand.work_s for demand in demands))
        self._left = {demand: demand.work_s * spare for demand in demands}
        """Slot seconds that no host has been given for yet. All capacity is given away: no host is without work."""
        self._opening: dict[str, float] = {}
        """Guest -> slot seconds of its tests that no host begins with yet."""
        self._suiting: dict[HostKind, list[Demand]] = {}
        for demand in demands:
            self._opening[str(demand.guest)] = self._opening.get(str(demand.guest), 0.0) + demand.work_s

    def builds(self, hosts: Sequence[HostState]) -> list[Build]:
        plan: dict[HostState, list[str]] = {}
        for state in sorted(hosts, key=self._turn):
            plan[state] = self._guests(state, self._eligible(state))
        self._cover(plan)
        builds: list[Build] = []
        for state, guests in plan.items():
            opener = self._opener(state, guests, self._eligible(state))
            if opener is not None and opener not in guests:
                guests.append(opener)
            guests.sort(key=lambda guest: (self._build_s[guest], guest))
            builds += [(state, guest) for guest in guests if not has(state, guest)]
        return builds

    def _eligible(self, state: HostState) -> list[Demand]:
        kind = state.host.kind
        suiting = self._suiting.get(kind)
        if suiting is None:
            suiting = self._suiting[kind] = [demand for demand in self._demands if demand.suits(state.host)]
        return suiting

    def _cover(self, plan: dict[HostState, list[str]]) -> None:
        """Let each guest that no host has yet be made where there is most room for it."""
        able_for: dict[Demand, list[HostState]] = {demand: [] for demand in self._demands}
        for state in self._fleet.living:
            for demand in self._eligible(state):
                able_for[demand].append(state)
        for demand in sorted(self._demands, key=lambda demand: -demand.work_s):
            guest = str(demand.guest)
            able = able_for[demand]
            if any(has(state, guest) or guest in plan.get(state, ()) for state in able):
                continue
            free = [state for state in able if state in plan and len(plan[state]) < state.host.slots]
            if free:
                plan[max(free, key=lambda s: (s.host.slots * s.speed / (1 + len(plan[s])), -s.order))].append(guest)

    def _turn(self, state: HostState) -> tuple[float, ...]:
        """Hosts with scarce labels choose first, then large ones."""
        scarcest = max((s for labels, s in self._scarcity.items() if labels <= state.host.labels), default=1.0)
        return (-scarcest, -state.host.slots * state.speed, state.order)

    def _guests(self, state: HostState, demands: list[Demand]) -> list[str]:
        capacity_s = state.host.slots * state.speed * self._span_s
        names = {str(demand.guest) for demand in demands}
        if not names:
            return []
        mean_s = sum(self._build_s[name] for name in names) / len(names)
        number = min(len(names), state.host.slots, 1 + int(SHARE * capacity_s / max(mean_s, 1e-9)))
        chosen: list[str] = []
        while len(chosen) < number:
            worth: dict[str, float] = {}
            for demand in demands:
                guest = str(demand.guest)
                if guest not in chosen and self._left[demand] > 0:
                    worth[guest] = worth.get(guest, 0.0) + self._left[demand] * self._scarcity[demand.labels] ** 2
            if not worth:
                break
            chosen.append(max(worth, key=lambda guest: (worth[guest], guest)))
            self._give(chosen[-1], demands, capacity_s / number)
        return chosen

    def _give(self, guest: str, demands: list[Demand], capacity_s: float) -> None:
        """Count capacity for a guest as given, for the scarcest labels first."""
        own = [demand for demand in demands if demand.guest == guest]
        for demand in sorted(own, key=lambda demand: -self._scarcity[demand.labels]):
            used_s = min(capacity_s, max(0.0, self._left[demand]))
            self._left[demand] -= used_s
            capacity_s -= used_s

    def _opener(self, state: HostState, guests: list[str], demands: list[Demand]) -> str | None:
        """The guest whose template is there first, for the slots that have nothing else to do until the next one is."""
        soonest_s = min((self._build_s[guest] for guest in guests), default=URGENT_S)
        for guest in sorted({str(demand.guest) for demand in demands}, key=lambda guest: (self._build_s[guest], guest)):
            ahead_s = soonest_s - self._build_s[guest]
            if ahead_s <= HASTE_S and guest not in guests:
                return None
            need_s = state.host.slots * (max(ahead_s, OPENING_S) + OPENING_S)
            if self._opening[guest] >= need_s:
                self._opening[guest] -= need_s
                return guest
        return None
