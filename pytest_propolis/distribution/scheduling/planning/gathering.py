"""Hosts that are gathered for a test that needs several at the same time, or one to itself."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from ..backlog import Backlog
from ..chooser import SLOW
from ..fleet import Fleet
from ..host import HostSpec, HostState
from ..needs import Needs

__all__ = ["Gathering", "Gatherings", "Request"]

HOSTS_PER_GATHERING: Final = 20
"""For each so many hosts one test may have hosts kept for it: what is kept lies idle until the last host is there."""

BOUND: Final = 8
"""How many tests workers may hold as their next for each one that has hosts kept for it."""

URGENCY: Final = 1.5
URGENT: Final = 3
"""URGENT times as many may have hosts kept for them if the run lasts no longer than URGENCY times such a test."""

CANDIDATES: Final = 50
"""Among how many hosts those are looked for that have room soonest."""

MARGIN: Final = 2.5
"""How much longer than expected a test may take on a slow host without outlasting the run: estimates err."""


@dataclass(frozen=True, slots=True, order=True)
class Request:
    """A test that waits for its hosts.

    :param held: whether an idle worker holds it.
    """

    index: int
    needs: Needs = field(compare=False)
    rank_s: float
    held: bool = False

    @property
    def turn(self) -> tuple[bool, float, int]:
        return (not self.held, -self.rank_s, self.index)


@dataclass(slots=True, eq=False)
class Gathering:
    """Hosts that a test has already, and those of which it gets the next that is free."""

    index: int
    needs: Needs
    worker: str
    held: bool = False
    """Whether the worker held the test before."""
    displaced: bool = False
    """Whether the worker runs the test already, which has lost its hosts. It boots where its template is not."""
    work_s: float = 0.0
    taken: list[HostState] = field(default_factory=list)
    missing: list[HostState] = field(default_factory=list)


class Gatherings:
    """The tests for which hosts are gathered.

    It cannot deadlock: a gathering names all its hosts when it begins, and no younger one gets one of these before it.
    So a gathering waits for running tests and for older gatherings only.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.active: list[Gathering] = []
        self._fleet = fleet
        self._claims: dict[str, list[Gathering]] = {}
        self._waiting: list[tuple[tuple[bool, float, int], Request]] = []
        self._stalled: dict[str | None, dict[int, list[Request]]] = {}
        """By guest, and by the identity of the needs: those of a queue are one object."""
        self._queued: set[int] = set()
        """Tests that wait, those aside that idle workers hold: such a request is void when its worker is lost."""
        self._bound: set[int] = set()
        """Tests that busy workers hold as their next."""

    def add(self, request: Request) -> None:
        """Let a test wait for its hosts. Those that idle workers hold are served first, then the longest."""
        if not request.held:
            if request.index in self._queued:
                return
            self._queued.add(request.index)
        heapq.heappush(self._waiting, (request.turn, request))

    def expects(self, index: int) -> bool:
        """Return whether a test that no worker holds waits for its hosts already."""
        return index in self._queued

    def next(self, slack_s: float) -> Request | None:
        """Take the test that is served next; None if there is none, or too many are served. It may have started.

        :param slack_s: how long the run will probably last.
        """
        if not self._waiting:
            return None
        urgent = self._waiting[0][1].rank_s * URGENCY > slack_s
        if len(self.active) >= self._most * (URGENT if urgent else 1):
            return None
        return self._pop()

    def bind(self, backlog: Backlog) -> int | None:
        """Take a test that a worker is to hold as its next; None if enough are served or held."""
        while self._waiting and not self._waiting[0][1].held and len(self._bound) < BOUND * self._most:
            request = self._pop()
            if request.index in backlog:
                if self._fleet.can_run(request.needs):
                    self._bound.add(request.index)
                    return request.index
                self._stall(request)
        return None

    def unbind(self, index: int) -> bool:
        """Let a worker be idle that holds a test, and return whether it holds the test since `bind`."""
        bound = index in self._bound
        self._bound.discard(index)
        return bound

    def begin(self, request: Request, worker: str, slack_s: float) -> Gathering | None:
        """Choose hosts for a test and take those that have room; None if too few have its template.

        :param worker: which one will run it.
        :param slack_s: how long the run will probably last: hosts on which the test would take longer come last.
        """
        needs = request.needs
        chosen = self._free_hosts(needs, request.rank_s, slack_s)
        if len(chosen) < needs.hosts:
            chosen = self._soonest_hosts(needs, request.rank_s, slack_s)
        if len(chosen) < needs.hosts:
            self._fleet.version += 1
            self._stall(request)
            return None
        return self._claim(Gathering(request.index, needs, worker, request.held, missing=chosen))

    def begin_anew(self, index: int, needs: Needs, worker: str) -> Gathering | None:
        """Choose hosts for a test that has lost its own, with or without its template; None if there are too few.

        :param worker: which one runs the test.
        """
        gathering = Gathering(index, needs, worker, displaced=True)
        chosen = self._free_for(gathering, 0.0)
        if len(chosen) < needs.hosts:
            able = self._fleet.able(needs)
            chosen = heapq.nsmallest(needs.hosts, able, key=lambda state: self._wait(state, needs))
        if len(chosen) < needs.hosts:
            return None
        gathering.missing += chosen
        return self._claim(gathering)

    def _claim(self, gathering: Gathering) -> Gathering:
        """Have the hosts kept that a test is missing, and take those that have room."""
        for state in list(gathering.missing):
            claims = self._claims.setdefault(state.host.name, [])
            claims.append(gathering)
            if len(claims) == 1:
                self._serve(state)
        if gathering.missing:
            self.active.append(gathering)
        return gathering

    def reconsider(self, slack_s: float) -> tuple[list[Gathering], list[HostState]]:
        """Let tests have hosts that are free now instead of those for which they wait.

        :returns: the gatherings that are complete now, and the hosts that are no longer kept.
        """
        released: list[HostState] = []
        for gathering in self.active:
            needs = gathering.needs
            free = self._free_for(gathering, slack_s)
            for other in [state for state in free if state not in gathering.taken][: len(gathering.missing)]:
                state = gathering.missing.pop()
                self._claims[state.host.name].remove(gathering)
                released.append(state)
                other.take(needs)
                gathering.taken.append(other)
        return self._complete(self.active), released

    def keeps(self, state: HostState) -> bool:
        """Return whether a host is kept for a test."""
        return bool(self._claims.get(state.host.name))

    def serve(self, state: HostState) -> tuple[list[Gathering], bool]:
        """Give what a host has to those that it is kept for.

        :returns: the gatherings that are complete now, and whether the host is still kept for others.
        """
        claims = self._claims.get(state.host.name)
        if not claims:
            return [], False
        return self._complete(self._serve(state)), bool(claims)

    def template_made(self, host: HostSpec, guest: str) -> None:
        """Try again the tests for which too few hosts had a template."""
        self._try_again(host, guest)

    def host_joined(self, host: HostSpec) -> None:
        """Try again the tests for which there were too few hosts."""
        for guest in (None, *host.templates):
            self._try_again(host, guest)

    def host_lost(self, name: str) -> list[Gathering]:
        """Give up those that a lost host was for. What they have taken is given back."""
        return self._give_up([g for g in self.active if any(s.host.name == name for s in (*g.taken, *g.missing))])

    def worker_lost(self, worker: str) -> list[Gathering]:
        """Give up those whose test a lost worker was to run. What they have taken is given back."""
        return self._give_up([gathering for gathering in self.active if gathering.worker == worker])

    def _pop(self) -> Request:
        _, request = heapq.heappop(self._waiting)
        if not request.held:
            self._queued.discard(request.index)
        return request

    def _stall(self, request: Request) -> None:
        alike = self._stalled.setdefault(request.needs.guest, {})
        alike.setdefault(id(request.needs), []).append(request)

    def _try_again(self, host: HostSpec, guest: str | None) -> None:
        """Serve those again that were stalled and that this host can run, if there are enough such hosts now."""
        stalled = self._stalled.get(guest, {})
        for key, requests in list(stalled.items()):
            needs = requests[0].needs
            if host.could_fit(needs) and self._fleet.is_warm(needs):
                del stalled[key]
                for request in requests:
                    self.add(request)

    @property
    def _most(self) -> int:
        return max(1, len(self._fleet.living) // HOSTS_PER_GATHERING)

    def _give_up(self, gatherings: list[Gathering]) -> list[Gathering]:
        for gathering in gatherings:
            self.active.remove(gathering)
            for state in gathering.missing:
                self._claims[state.host.name].remove(gathering)
            for state in gathering.taken:
                state.give_back(gathering.needs)
        return gatherings

    def _complete(self, gatherings: list[Gathering]) -> list[Gathering]:
        complete = [gathering for gathering in gatherings if not gathering.missing]
        for gathering in complete:
            self.active.remove(gathering)
        return complete

    def _free_for(self, gathering: Gathering, slack_s: float) -> list[HostState]:
        """Return the hosts that a test can have at once, for which hosts are gathered."""
        needs = gathering.needs
        if not gathering.displaced:
            return self._free_hosts(needs, gathering.work_s / needs.hosts, slack_s)
        free = [state for state in self._fleet.fastest_first if self._is_free(state, needs)]
        free.sort(key=lambda state: needs.guest is not None and needs.guest not in state.templates)
        return free[: needs.hosts]

    def _is_free(self, state: HostState, needs: Needs) -> bool:
        return state.could_fit(needs) and state.fits(needs) and not self.keeps(state)

    def _free_hosts(self, needs: Needs, duration_s: float, slack_s: float) -> list[HostState]:
        """Return the hosts that a test can have at once: the fastest, but none on which it might outlast the run."""
        labels, claims, slowest = needs.labels, self._claims, self._slowest(needs, duration_s, slack_s)
        chosen: list[HostState] = []
        for state in self._fleet.having(needs.guest):
            if state.slots < 1 or not state.fits(needs):
                continue
            if state.speed < slowest:
                break
            if labels <= state.host.labels and not claims.get(state.host.name):
                chosen.append(state)
                if len(chosen) == needs.hosts:
                    break
        return chosen

    def _soonest_hosts(self, needs: Needs, duration_s: float, slack_s: float) -> list[HostState]:
        """Return the hosts that will probably have room for a test soonest; too few if too few have its template."""
        candidates = self._candidates(needs, duration_s, slack_s)
        hosts = list(islice(candidates, max(CANDIDATES, needs.hosts)))
        if len(hosts) < needs.hosts:
            hosts = self._fleet.warm(needs)
        return heapq.nsmallest(needs.hosts, hosts, key=lambda state: self._wait(state, needs))

    def _candidates(self, needs: Needs, duration_s: float, slack_s: float) -> Iterator[HostState]:
        """Find the hosts that can run a test and are kept for no other, but none on which it might outlast the run."""
        labels, claims, slowest = needs.labels, self._claims, self._slowest(needs, duration_s, slack_s)
        for state in self._fleet.having(needs.guest):
            if state.speed < slowest:
                break
            if labels <= state.host.labels and not claims.get(state.host.name) and state.could_fit(needs):
                yield state

    def _slowest(self, needs: Needs, duration_s: float, slack_s: float) -> float:
        """Return the speed below which a host might let a test outlast the run."""
        return min(MARGIN * duration_s / max(slack_s, 1.0), SLOW * self._fleet.fastest(needs))

    def _serve(self, state: HostState) -> list[Gathering]:
        claims = self._claims.get(state.host.name)
        served = []
        while claims and state.fits(claims[0].needs):
            gathering = claims.pop(0)
            state.take(gathering.needs)
            gathering.missing.remove(state)
            gathering.taken.append(state)
            served.append(gathering)
        return served

    def _wait(self, state: HostState, needs: Needs) -> tuple[int, float]:
        """How long a host lets a test wait: by the tests before it, and by the share of the host that must be freed."""
        host = state.host
        lacking = max(
            ((host.slots if needs.exclusive else 1) - state.slots) / host.slots,
            (needs.cpus - state.cpus) / max(host.cpus, 1),
            (needs.memory_mib - state.memory_mib) / max(host.memory_mib, 1),
            0.0,
        )
        return len(self._claims.get(host.name, ())), lacking
