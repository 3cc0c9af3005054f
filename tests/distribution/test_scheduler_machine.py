"""Random sequences of events: `ModelFleet` checks the guarantees of the scheduler at each decision."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from model_fleet import ModelFleet

from pytest_propolis.distribution.scheduling import HostSpec, Item, Needs

LABELS = st.sampled_from([frozenset(), frozenset({"kvm"}), frozenset({"zfs"})])
BUILD_S = {"alpine": 5.0, "debian": 30.0, "micro": 0.5}
NEEDS = st.builds(
    Needs,
    guest=st.sampled_from([None, *BUILD_S]),
    memory_mib=st.sampled_from([0, 256, 1024, 4096]),
    cpus=st.integers(0, 4),
    hosts=st.sampled_from([0, 1, 1, 1, 1, 2, 3]),
    labels=LABELS,
    exclusive=st.sampled_from([False, False, False, True]),
)
TESTS = st.lists(
    st.tuples(NEEDS, st.sampled_from(["a", "b", "c"]), st.none() | st.floats(0.01, 300)), min_size=1, max_size=12
)
HOSTS = st.builds(
    HostSpec,
    name=st.sampled_from(["h0", "h1", "h2", "h3"]),
    slots=st.integers(1, 4),
    memory_mib=st.sampled_from([1024, 4096, 8192]),
    cpus=st.integers(1, 8),
    labels=st.sampled_from([frozenset(), frozenset({"kvm"}), frozenset({"kvm", "zfs"})]),
    speed=st.sampled_from([0.5, 1.0, 1.2]),
    templates=st.sampled_from([frozenset(), frozenset({"alpine"})]),
)
WAYS_TO_LOSE = st.sampled_from([ModelFleet.lose_test, ModelFleet.lose_worker, ModelFleet.lose_and_regain_host])


class SchedulerMachine(RuleBasedStateMachine):
    fleet: ModelFleet

    @initialize(
        one_ahead=st.booleans(),
        latency_s=st.sampled_from([0.0, 0.02]),
        hosts=st.lists(HOSTS, max_size=4, unique_by=lambda host: host.name),
    )
    def begin(self, one_ahead: bool, latency_s: float, hosts: list[HostSpec]) -> None:
        self.fleet = ModelFleet(BUILD_S, one_ahead=one_ahead, latency_s=latency_s)
        self.workers = 0
        self.doomed: tuple[str, Callable[[ModelFleet, str], None]] | None = None
        self.hire(2, None)
        for host in hosts:
            self.fleet.add_host(host)

    @rule(number=st.integers(1, 3), own_host=st.sampled_from([None, None, "h0", "h1"]))
    def hire(self, number: int, own_host: str | None) -> None:
        for _ in range(number):
            self.workers += 1
            self.fleet.add_workers(f"gw{self.workers}", own_host=own_host)

    @rule(tests=TESTS)
    def collect(self, tests: list[tuple[Needs, str, float | None]]) -> None:
        first = len(self.fleet.items)
        self.fleet.add_tests(
            *(
                Item(f"{module}::test_{number}", needs, module, estimate_s)
                for number, (needs, module, estimate_s) in enumerate(tests, first)
            )
        )

    @rule(host=HOSTS)
    def host_joins(self, host: HostSpec) -> None:
        if host.name not in self.fleet.hosts:
            self.fleet.add_host(host)

    @precondition(lambda self: self.fleet.hosts)
    @rule(data=st.data())
    def host_is_lost(self, data: st.DataObject) -> None:
        self.fleet.lose_host(data.draw(st.sampled_from(sorted(self.fleet.hosts))))

    @precondition(lambda self: any(run.hosts for run in self.fleet.running.values()))
    @rule(data=st.data())
    def host_is_lost_and_its_tests_run_again(self, data: st.DataObject) -> None:
        busy = {name for run in self.fleet.running.values() for name in run.hosts}
        self.fleet.lose_host_but_not_its_tests(data.draw(st.sampled_from(sorted(busy))))

    @precondition(lambda self: self.fleet.running.keys() - self.fleet.displaced)
    @rule(data=st.data(), duration_s=st.floats(0.001, 500))
    def test_finishes(self, data: st.DataObject, duration_s: float) -> None:
        running = sorted(self.fleet.running.keys() - self.fleet.displaced)
        self.fleet.finish(data.draw(st.sampled_from(running)), duration_s)

    @precondition(lambda self: self.fleet.running)
    @rule(data=st.data(), again=st.booleans())
    def test_is_lost(self, data: st.DataObject, again: bool) -> None:
        self.fleet.lose_test(data.draw(st.sampled_from(sorted(self.fleet.running))), again=again)

    @precondition(lambda self: self.fleet.idle or self.fleet.running)
    @rule(data=st.data(), again=st.booleans())
    def worker_crashes(self, data: st.DataObject, again: bool) -> None:
        workers = sorted({*self.fleet.idle, *self.fleet.running})
        self.fleet.lose_worker(data.draw(st.sampled_from(workers)), again=again)

    @precondition(lambda self: any(host.building for host in self.fleet.hosts.values()))
    @rule(data=st.data())
    def template_is_made(self, data: st.DataObject) -> None:
        building = sorted((name, guest) for name, host in self.fleet.hosts.items() for guest in host.building)
        self.fleet.make_template(*data.draw(st.sampled_from(building)))

    @precondition(lambda self: self.fleet.hosts and self.fleet.items.keys() - self.fleet.done)
    @rule()
    def tests_start(self) -> None:
        """All templates are made that are wanted now, so that there is something to lose."""
        self.fleet.decide()
        for name, host in self.fleet.hosts.items():
            for guest in sorted(host.building):
                self.fleet.make_template(name, guest)
        self.fleet.decide(1.0)

    @precondition(lambda self: self.fleet.items)
    @rule(data=st.data())
    def test_is_given_up(self, data: st.DataObject) -> None:
        self.fleet.give_up(data.draw(st.sampled_from(sorted(self.fleet.items))))

    @precondition(lambda self: self.fleet.items.keys() - self.fleet.done)
    @rule(data=st.data(), lose=WAYS_TO_LOSE)
    def test_is_doomed(self, data: st.DataObject, lose: Callable[[ModelFleet, str], None]) -> None:
        """From the last step on it is lost as often as it starts."""
        self.doomed = data.draw(st.sampled_from(sorted(self.fleet.items.keys() - self.fleet.done))), lose

    @rule(wait_s=st.sampled_from([0.0, 0.1, 10.0]))
    def decide(self, wait_s: float) -> None:
        self.fleet.decide(wait_s)

    def teardown(self) -> None:
        """All tests run that can, also while one is lost as often as it starts: none starves, and those that need
        several hosts do not block each other.
        """
        if not hasattr(self, "fleet"):
            return
        if self.doomed is not None:
            self.fleet.run_others(*self.doomed)
        self.fleet.run_out()
        for test in self.fleet.items.keys() - self.fleet.done:
            able = self.fleet.able(test)
            assert len(able) < self.fleet.items[test].needs.hosts, self.fleet.scheduler.why_waiting(test)
            assert f"there are {len(able)}" in self.fleet.scheduler.why_waiting(test)


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = SchedulerMachine.TestCase
