"""Starts tests and templates where there is room for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Final

from .chooser import SHORT_S, SLOW, Choice, Chooser
from .decision import BuildTemplate, Decision, Relocate, Start
from .demand import Queue
from .follower import Follower
from .host import HostState
from .planning.gathering import Gathering, Request
from .planning.horizon import remaining_s
from .planning.planner import TemplatePlanner
from .planning.reservation import Reservation
from .state import Running, RunState

__all__ = ["Dispatcher"]

TICKS: Final = 30
"""How often in the rest of a run its end and the templates are thought over."""

SHORTEST_TICK_S: Final = 0.5

BATCH_LATENCIES: Final = 40.0
"""How much longer a batch of very short tests takes than the message that starts it."""

BATCHES_LEFT: Final = 3.0
"""How many batches for each slot, or worker, there should still be, so that all of them end at the same time."""


BUILDERS: Final = 4
"""One slot in so many makes templates at the same time, once the host has begun with its first ones."""

WIDE_SLOTS: Final = 2.0
"""A test that needs the CPUs or the memory of so many slots may never find them free between narrow tests."""

URGENCY: Final = 3.0
"""A wide test has hosts emptied for it when the run probably lasts no longer than so many times the test."""

_Choice = tuple[Queue, int, str]
"""A test, as its queue and its index, and the worker that runs it."""


class Dispatcher:
    """Makes the decisions of one moment after the other.

    :param build_s: guest -> how long its template takes on a host of speed 1.0, in s.
    """

    def __init__(self, run: RunState, build_s: Mapping[str, float], *, latency_s: float, one_ahead: bool) -> None:
        self._run = run
        self._build_s = build_s
        self._latency_s = latency_s
        self._reservation = Reservation(run.fleet, run.backlog)
        self._chooser = Chooser(run.fleet, self._reservation)
        self._planner = TemplatePlanner(run.fleet, run.backlog, build_s)
        self._follower = Follower(run, self._chooser) if one_ahead else None
        self._postponed: dict[HostState, list[str]] = {}
        """Templates for which a busy host has to make room."""
        self._lacking: dict[HostState, None] = {}
        """Hosts that have had a free slot and found no worker."""
        self._next_tick_s = 0.0
        self._now_s = 0.0
        self._decisions: list[Decision] = []

    def decide(self, now_s: float, joined: Sequence[HostState]) -> list[Decision]:
        """Decide what is done now.

        :param joined: hosts that have no templates planned yet.
        """
        run = self._run
        self._now_s, self._decisions = now_s, []
        self._reservation.set_time(now_s)
        run.readmit()
        waiting = len(run.backlog) or run.workers.holders or run.gatherings.active or run.set_aside
        quiet = not run.running and not any(state.building for state in run.fleet.living)
        tick = bool(joined) or now_s >= self._next_tick_s or quiet
        run.awake |= quiet
        if tick and waiting:
            self._look_ahead()
        for state, guest in self._planner.first(joined, max(self._chooser.slack_s, SHORTEST_TICK_S)) if joined else ():
            self._build(state, guest)
        if run.displaced:
            self._gather_displaced()
        self._gather()
        self._place_held()
        if self._lacking and run.workers.empty:
            run.changed.update(self._lacking)
            self._lacking.clear()
        self._fill(run.take_changed())
        if tick and waiting:
            self._build_further()
        self._start_hostless()
        if quiet and waiting and not self._decisions:
            self._be_lenient()
            if run.set_aside and not self._decisions:
                run.readmit(always=run.workers.empty)  # Without a worker, the others wait for one only.
                self._be_lenient()
        return self._decisions

    def _be_lenient(self) -> None:
        """Let slow hosts run any test, since nothing else happens that could help those that wait."""
        self._chooser.lenient = self._run.awake = True
        self._gather()
        self._fill(self._run.take_changed())
        self._start_hostless()
        self._chooser.lenient = False

    def _look_ahead(self) -> None:
        run = self._run
        running_s = run.remaining_s(self._now_s)
        slack_s = self._chooser.slack_s = remaining_s(run.backlog, run.fleet, running_s, run.durations.longest_s)
        self._chooser.weigh(run.backlog.demands)
        self._next_tick_s = self._now_s + max(SHORTEST_TICK_S, slack_s / TICKS)
        self._reservation.look_ahead(slack_s, run.durations.longest_s)
        # What slow hosts may run depends on how long the run lasts.
        fastest = max((state.speed for state in run.fleet.living), default=0.0)
        run.changed.update(state for state in run.fleet.living if state.slots > 0 and state.speed < SLOW * fastest)
        for queue, index, rank_s in run.backlog.wide(*run.fleet.share(WIDE_SLOTS), slack_s / URGENCY):
            if not run.gatherings.expects(index):
                run.gatherings.add(Request(index, queue.needs, rank_s))
        complete, released = run.gatherings.reconsider(slack_s)
        for gathering in complete:
            self._start_gathered(gathering)
        run.changed.update(released)

    def _place_held(self) -> None:
        """Let a host look at each test that an idle worker holds now: the fastest one that can begin it."""
        run = self._run
        newly_held, run.newly_held = run.newly_held, []
        for index, hosts in newly_held:
            if index in run.workers.holders:
                queue, rank_s = run.queue(index), run.durations.estimate(index).rank_s
                if queue.demand.gathered or queue.demand.hostless:
                    continue
                if hosts and not self._chooser.is_short(rank_s):
                    state = hosts[0]
                    if (
                        state.alive
                        and self._may_have(state, queue.demand.weight)
                        and self._chooser.can_begin(state, queue, rank_s)
                    ):
                        state.take(queue.needs)
                        self._start(run.workers.holders[index], index, (state,), run.withdraw(index))
                        continue
                if run.awake:
                    continue
                for state in run.fleet.having(queue.needs.guest):
                    if state.slots > 0 and self._chooser.can_begin(state, queue, rank_s):
                        run.changed.add(state)
                        break

    def _may_have(self, state: HostState, weight: float) -> bool:
        """Return whether a host is kept for no test that matters more."""
        run = self._run
        if run.gatherings.keeps(state) or self._postponed.get(state):
            return False
        return not any(demand.held and demand.weight > weight for demand in run.fleet.runnable(state))

    def _fill(self, changed: Collection[HostState]) -> None:
        if len(changed) > 1:
            changed = sorted(changed, key=lambda state: (-state.speed, state.order))
        choices = [self._choose_near, self._choose] if self._run.workers.on_hosts else [self._choose]
        for choose in choices:
            for state in changed:
                if state.alive:
                    self._fill_host(state, choose)

    def _fill_host(self, state: HostState, choose: Callable[[HostState], _Choice | None]) -> None:
        complete, kept = self._run.gatherings.serve(state)
        for gathering in complete:
            self._start_gathered(gathering)
        if kept:
            return
        postponed = self._postponed.get(state, [])
        while postponed and state.slots > 0:
            self._build(state, postponed.pop(0))
        while state.slots > 0:
            choice = choose(state)
            if choice is None:
                return
            queue, index, worker = choice
            state.take(queue.needs)
            self._start(worker, index, (state,), self._run.withdraw(index))

    def _choose(self, state: HostState) -> _Choice | None:
        """Choose a test and a worker: one that holds the test, or one that holds none."""
        workers = self._run.workers
        held = self._chooser.best(state, held=True) if workers.holders else None
        free = None
        if workers.empty:
            free = self._chooser.best(state)
        elif held is None:
            self._lacking[state] = None
        return self._longer(held, free, state)

    def _choose_near(self, state: HostState) -> _Choice | None:
        """Choose a test and a worker that runs on this host itself, or on none."""
        run, name = self._run, state.host.name
        near = [index for index, worker in run.workers.holders.items() if run.workers.is_near(worker, name)]
        ranked = sorted([(run.durations.estimate(index).rank_s, index) for index in near], reverse=True)
        held = [
            (run.queue(index), index)
            for rank_s, index in ranked
            if self._chooser.can_begin(state, run.queue(index), rank_s)
        ]
        free = self._chooser.best(state) if run.workers.empty_near(name) else None
        return self._longer(held[0] if held else None, free, state)

    def _longer(self, held: Choice | None, free: Choice | None, state: HostState) -> _Choice | None:
        """Return the longer one of a test that an idle worker holds and one that none holds, with a worker."""
        workers, durations = self._run.workers, self._run.durations
        if held and free:
            free_s = durations.estimate(free[1]).rank_s * free[0].demand.weight
            if free_s > durations.estimate(held[1]).rank_s * held[0].demand.weight:
                held = None
        if held is not None:
            return *held, workers.holders[held[1]]
        return None if free is None else (*free, workers.take(state.host.name))

    def _start(self, worker: str, index: int, hosts: tuple[HostState, ...], work_s: float) -> None:
        """Start a test that is out of the backlog on hosts that have been taken for it."""
        run = self._run
        queue = run.queue(index)
        speed = hosts[0].speed if len(hosts) == 1 else min([state.speed for state in hosts], default=1.0)
        tests: tuple[int, ...] = (index,)
        if queue.demand.hostless:
            # A message for each would cost more than such tests do.
            companions = self._longest_companions(index, queue, SHORT_S)
            if companions:
                run.backlog.remove_longest(queue, len(companions))
            tests = (index, *companions)
        elif self._latency_s:
            tests = (index, *self._companions(index, queue))
            work_s += sum([run.backlog.remove(other) for other in tests[1:]])
        following = None
        if self._follower is not None:
            longest_s = max(run.durations.estimate(index).rank_s, work_s)
            following = self._follower.choose(worker, queue, hosts, longest_s)
        rate = speed * len(hosts)
        queue.demand.run(rate)
        run.running[worker] = Running(worker, tests, hosts, queue, speed, rate, self._now_s, work_s)
        ids = tuple([run.items[test].id for test in tests])
        names = tuple([state.host.name for state in hosts])
        self._decisions.append(Start(worker, ids, names, None if following is None else run.items[following].id))

    def _companions(self, index: int, queue: Queue) -> list[int]:
        """Choose what is sent with a very short test."""
        run = self._run
        target_s = self._latency_s * BATCH_LATENCIES
        if run.items[index].estimate_s is None:
            return self._longest_companions(index, queue, target_s)
        left_s = run.backlog.work_s / max(run.fleet.speed, 1.0) / BATCHES_LEFT
        return run.backlog.companions(queue, run.durations.estimate(index).rank_s, min(target_s, left_s))

    def _longest_companions(self, index: int, queue: Queue, target_s: float) -> list[int]:
        """Choose what is sent with a test of the same needs: the longest ones that wait, the longest first.

        :param target_s: how long all of them together will probably take at most.
        """
        run = self._run
        left_s = target_s - run.durations.likely_s(index)
        most = int(len(queue.tests) / BATCHES_LEFT / max(1, len(run.workers.alive)))
        chosen: list[int] = []
        for _, other in islice(reversed(queue.tests), most):
            left_s -= run.durations.likely_s(other)
            if left_s < 0:
                break
            chosen.append(other)
        return chosen

    def _gather(self) -> None:
        run = self._run
        while request := run.gatherings.next(self._chooser.slack_s):
            index = request.index
            gone = index not in (run.workers.holders if request.held else run.backlog)
            if gone or request.needs is not run.queue(index).needs:
                continue
            if not request.held and not run.workers.empty:
                run.gatherings.add(request)
                return
            worker = run.workers.holders[index] if request.held else run.workers.take()
            gathering = run.gatherings.begin(request, worker, self._chooser.slack_s)
            if gathering is None:
                if not request.held:
                    run.workers.ready(worker)
                continue
            gathering.work_s = run.withdraw(index)
            run.changed.update(gathering.missing)
            if not gathering.missing:
                self._start_gathered(gathering)

    def _gather_displaced(self) -> None:
        """Have hosts kept for the tests that have lost their own while they ran; any number, as their workers wait."""
        run = self._run
        for worker in [worker for worker, gathered in run.displaced.items() if not gathered]:
            running = run.running[worker]
            gathering = run.gatherings.begin_anew(running.tests[running.done], running.queue.needs, worker)
            if gathering is None:
                self._relocate(worker, ())
                continue
            run.displaced[worker] = True
            run.changed.update(gathering.missing)
            if not gathering.missing:
                self._start_gathered(gathering)

    def _relocate(self, worker: str, hosts: tuple[HostState, ...]) -> None:
        run = self._run
        run.relocate(worker, hosts)
        running = run.running[worker]
        names = tuple(state.host.name for state in hosts)
        self._decisions.append(Relocate(worker, run.items[running.tests[running.done]].id, names))

    def _start_gathered(self, gathering: Gathering) -> None:
        if gathering.displaced:
            self._relocate(gathering.worker, tuple(gathering.taken))
            return
        self._start(gathering.worker, gathering.index, tuple(gathering.taken), gathering.work_s)

    def _start_hostless(self) -> None:
        """Let the workers that are left run the tests that need no host."""
        run = self._run
        for queue in run.backlog.hostless:
            while queue.held:
                index = queue.held[-1][1]
                self._start(run.workers.holders[index], index, (), run.withdraw(index))
            while queue.tests and run.workers.empty:
                index = queue.tests[-1][1]
                self._start(run.workers.take(), index, (), run.withdraw(index))

    def _build(self, state: HostState, guest: str) -> None:
        if state.slots < 1:
            self._postponed.setdefault(state, []).append(guest)
        elif state.alive and not (guest in state.templates or guest in state.building):
            state.start_building(guest, self._now_s + self._build_s.get(guest, 0.0) / state.speed)
            self._decisions.append(BuildTemplate(state.host.name, guest))

    def _build_further(self) -> None:
        """Make the templates that pay, or without which a test cannot run."""
        idle = [
            state
            for state in self._run.fleet.living
            if state.slots > 0 and len(state.building) < max(1, state.host.slots // BUILDERS)
        ]
        for state, guest in self._planner.further(idle):
            self._build(state, guest)
