"""Hosts and workers that execute a scheduler's decisions, and check each against their own records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pytest_propolis.distribution.scheduling import (
    BuildTemplate,
    Decision,
    FleetScheduler,
    HostSpec,
    Item,
    Needs,
    Relocate,
    Start,
)

MOST_LOSSES = 40
"""How often a test may be lost before all others have run."""

PATIENCE = 3
"""How often nothing may happen before nothing will."""


@dataclass
class ModelHost:
    host: HostSpec
    templates: set[str] = field(default_factory=set)
    building: set[str] = field(default_factory=set)


@dataclass
class ModelRun:
    tests: list[str]
    hosts: list[str]


class ModelFleet:
    """A controller's records: how often each test ran, what runs where, and what each worker holds."""

    def __init__(
        self, build_s: dict[str, float] | None = None, *, one_ahead: bool = False, latency_s: float = 0.0
    ) -> None:
        self.scheduler = FleetScheduler(build_s, one_ahead=one_ahead, latency_s=latency_s)
        self.one_ahead = one_ahead
        self.now_s = 0.0
        self.items: dict[str, Item] = {}
        self.hosts: dict[str, ModelHost] = {}
        self.idle: set[str] = set()
        self.ended: set[str] = set()
        self.held: dict[str, str | None] = {}
        self.running: dict[str, ModelRun] = {}
        self.displaced: set[str] = set()
        """Workers whose tests have lost their hosts, and wait for others."""
        self.starts: list[Start] = []
        self.builds: list[BuildTemplate] = []
        self.done: set[str] = set()
        self.may_run_again: set[str] = set()
        self.started: set[str] = set()

    def add_tests(self, *items: Item) -> None:
        self.items.update((item.id, item) for item in items)
        self.scheduler.tests_known(items)

    def add_host(self, host: HostSpec) -> None:
        self.hosts[host.name] = ModelHost(host, set(host.templates))
        self.scheduler.host_joined(host)

    def add_workers(self, *workers: str, own_host: str | None = None) -> None:
        for worker in workers:
            self.idle.add(worker)
            self.scheduler.worker_ready(worker, own_host=own_host)

    def lose_host(self, name: str) -> None:
        del self.hosts[name]
        lost = self.scheduler.host_lost(name)
        there = {worker: run for worker, run in self.running.items() if name in run.hosts}
        assert sorted(lost) == sorted(run.tests[0] for run in there.values())
        for worker in there:
            self.lose_test(worker)

    def lose_host_but_not_its_tests(self, name: str) -> None:
        """Lose a host whose tests stay with their workers, and are to have other hosts."""
        del self.hosts[name]
        self.scheduler.host_lost(name)
        for worker, run in self.running.items():
            if name in run.hosts:
                run.hosts.clear()
                self.displaced.add(worker)
                self.scheduler.hosts_lost_by(worker)

    def lose_test(self, worker: str, *, again: bool = True) -> None:
        run = self.running.pop(worker)
        self.displaced.discard(worker)
        assert self.scheduler.test_lost(worker, again=again) == (run.tests[0],)
        self._forgive(run, again=again)
        self._let_go(worker)

    def lose_worker(self, worker: str, *, again: bool = True) -> None:
        run = self.running.pop(worker, None)
        self.displaced.discard(worker)
        lost = self.scheduler.worker_lost(worker, again=again)
        assert lost == ((run.tests[0],) if run else ())
        if run:
            self._forgive(run, again=again)
        self.idle.discard(worker)
        held = self.held.pop(worker, None)
        if held is not None:
            self.may_run_again.add(held)

    def finish(self, worker: str, duration_s: float = 1.0) -> None:
        """End the test that a worker runs."""
        run = self.running[worker]
        test = run.tests.pop(0)
        self.done.add(test)
        if not run.tests:
            del self.running[worker]
            self._let_go(worker)
        self.scheduler.test_finished(worker, test, duration_s)

    def give_up(self, test: str) -> bool:
        """Let a test run without hosts, if it waits."""
        given_up = self.scheduler.give_up(test)
        if given_up:
            assert test not in self.done
            self.items[test] = self.items[test]._replace(needs=Needs(hosts=0))
        return given_up

    def make_template(self, host: str, guest: str) -> None:
        self.hosts[host].building.remove(guest)
        self.hosts[host].templates.add(guest)
        self.scheduler.template_made(host, guest)

    def decide(self, wait_s: float = 0.0) -> Sequence[Decision]:
        """Advance the time, ask the scheduler for decisions, check them and execute them."""
        self.now_s += wait_s
        decisions = self.scheduler.decide(self.now_s)
        for decision in decisions:
            if isinstance(decision, Start):
                self._start(decision)
            elif isinstance(decision, BuildTemplate):
                self._build(decision)
            elif isinstance(decision, Relocate):
                self._relocate(decision)
            else:
                assert decision.worker in self.idle, "only idle workers end"
                assert self.done >= set(self.items), "no worker ends while tests are left"
                self.idle.remove(decision.worker)
                self.ended.add(decision.worker)
        for name in self.hosts:
            self._check_capacity(name)
        return decisions

    def run_out(self) -> None:
        """Make all templates and run all tests that can run."""
        stuck = 0
        for _ in range(10_000):
            decisions = self.decide(1.0)
            builds = [(name, guest) for name, host in self.hosts.items() for guest in sorted(host.building)]
            running = sorted(self.running.keys() - self.displaced)
            for name, guest in builds:
                self.make_template(name, guest)
            for worker in running:
                self.finish(worker)
            if decisions or builds or running:
                stuck = 0
            elif stuck == PATIENCE or self.done == set(self.items):
                assert not self.displaced, "no test waits for other hosts for ever"
                return
            else:  # All workers may have ended, or hold tests that no host can run any more.
                stuck += 1
                self.add_workers(f"replacement{len(self.ended)}-{len(self.idle)}")
        raise AssertionError("it does not come to an end")

    def run_others(self, doomed: str, lose: Callable[[ModelFleet, str], None]) -> None:
        """Run all tests that can run but one, which is lost as often as it starts.

        :param lose: called with the worker that runs it.
        """
        others = {test for test, item in self.items.items() if len(self.able(test)) >= item.needs.hosts} - {doomed}
        for round_number in range(MOST_LOSSES + 10 * len(self.items)):
            if others <= self.done:
                return
            decisions = self.decide(1.0)
            for name, guest in [(name, guest) for name, host in self.hosts.items() for guest in sorted(host.building)]:
                self.make_template(name, guest)
            ready = sorted(self.running.keys() - self.displaced)
            finishing = [worker for worker in ready if self.running[worker].tests[0] != doomed]
            for worker in finishing:
                self.finish(worker)
            for worker in self.running.keys() - set(finishing):
                if self.running[worker].tests[0] == doomed:
                    lose(self, worker)
            if not decisions or not self.idle:
                self.add_workers(f"further{round_number}")
        raise AssertionError(f"{sorted(others - self.done)} starve")

    def lose_and_regain_host(self, worker: str) -> None:
        """Lose one of the hosts that a worker's test has, which comes back with its templates; or the test."""
        names = self.running[worker].hosts
        if not names:
            self.lose_test(worker)
            return
        known = self.hosts[names[0]]
        self.lose_host(names[0])
        self.add_host(dataclasses.replace(known.host, templates=frozenset(known.templates)))

    def able(self, test: str) -> list[str]:
        """Return the hosts that would have room for a test if they did nothing else."""
        needs = self.items[test].needs
        return [
            name
            for name, model in self.hosts.items()
            if needs.labels <= model.host.labels
            and needs.cpus <= model.host.cpus
            and needs.memory_mib <= model.host.memory_mib
        ]

    def where(self, test: str) -> tuple[str, ...] | None:
        """Return the hosts on which a test runs now."""
        return next((tuple(run.hosts) for run in self.running.values() if test in run.tests), None)

    def _start(self, start: Start) -> None:
        assert start.worker in self.idle, "a worker runs one thing at a time"
        needs = self.items[start.tests[0]].needs
        assert all(self.items[test].needs == needs for test in start.tests)
        for test in start.tests:
            assert test not in self.started or test in self.may_run_again, f"{test} runs twice"
        assert len(set(start.hosts)) == len(start.hosts) == needs.hosts
        for name in start.hosts:
            host = self.hosts[name]
            assert needs.labels <= host.host.labels
            assert needs.guest is None or needs.guest in host.templates
        held = self.held.pop(start.worker, None)
        assert held in (None, start.tests[0]), "what a worker holds runs first"
        if self.one_ahead:
            self.held[start.worker] = start.following
            if start.following is not None:
                assert start.following not in self.started or start.following in self.may_run_again
                self.may_run_again.add(start.following)
                self.started.add(start.following)
        else:
            assert start.following is None
        self.may_run_again.difference_update(start.tests)
        self.started.update(start.tests)
        self.idle.remove(start.worker)
        self.running[start.worker] = ModelRun(list(start.tests), list(start.hosts))
        self.starts.append(start)

    def _relocate(self, decision: Relocate) -> None:
        assert decision.worker in self.displaced, "only a test that has lost its hosts gets others"
        run = self.running[decision.worker]
        assert decision.test == run.tests[0]
        needs = self.items[decision.test].needs
        if decision.hosts:
            assert len(set(decision.hosts)) == len(decision.hosts) == needs.hosts
            assert set(decision.hosts) <= set(self.able(decision.test))
        else:
            assert len(self.able(decision.test)) < needs.hosts, "it could have hosts"
        self.displaced.remove(decision.worker)
        run.hosts[:] = decision.hosts

    def _build(self, build: BuildTemplate) -> None:
        host = self.hosts[build.host]
        assert build.guest not in host.templates | host.building
        host.building.add(build.guest)
        self.builds.append(build)

    def _check_capacity(self, name: str) -> None:
        host = self.hosts[name].host
        needs = [self.items[run.tests[0]].needs for run in self.running.values() if name in run.hosts]
        assert len(needs) + len(self.hosts[name].building) <= host.slots
        assert sum(need.cpus for need in needs) <= host.cpus
        assert sum(need.memory_mib for need in needs) <= host.memory_mib
        if any(need.exclusive for need in needs):
            assert len(needs) == 1
            assert not self.hosts[name].building

    def _forgive(self, run: ModelRun, *, again: bool) -> None:
        """Let those run again that did not run, and the one that was lost if it may."""
        lost, *unstarted = run.tests
        self.may_run_again.update([lost, *unstarted] if again else unstarted)
        if not again:
            self.done.add(lost)

    def _let_go(self, worker: str) -> None:
        """Mark a worker as idle, or ended if it knows that nothing follows."""
        if self.one_ahead and self.held.get(worker, "") is None:
            del self.held[worker]
            self.ended.add(worker)
        else:
            self.idle.add(worker)
