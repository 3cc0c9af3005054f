"""The scheduler behind pytest-xdist's interface: which worker runs which test, on which hosts.

A worker of xdist starts a test only when it knows the next one, or that there is none, and what it holds as its next
cannot be taken back. So what a worker is sent is always one test ahead of what it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import pytest

from ..hosts.inventory.capacity import cpus_of, memory_mib_of, slots_of
from ..hosts.inventory.probing import probed_inventory
from ..hosts.kinds import is_elsewhere
from ..session.internals import base_temporary_directory, call_in_controller, collection_difference, number_of_workers
from ..session.progress import line_printer
from ..session.stash import SETTINGS
from .background_loop import BackgroundLoop
from .earlier_runs import EarlierRuns, machine_of
from .scheduling.decision import BuildTemplate, EndWorker, Relocate, Start
from .scheduling.host import HostSpec
from .scheduling.item import Item
from .scheduling.needs import Needs
from .scheduling.scheduler import FleetScheduler
from .status.snapshot import HostStatus, WaitingTests
from .status.source import host_status
from .worker_channel import WorkerChannel

if TYPE_CHECKING:
    from .rejoining import Rejoining
    from .template_preparer import TemplatePreparer

__all__ = ["HostScheduling"]

TEMPLATE_S: Final = 10.0
"""How long a template takes, before any was made."""

HOSTLESS: Final = Needs(hosts=0)

NOWHERE: Final[tuple[str, tuple[str, ...]]] = ("", ())

LATENCY_S: Final = 0.05
"""How long a worker may wait for what it is to run next where this machine runs all VMs, which keep it busy. Short
tests are sent several at once there, and only there: what is sent for a host cannot run on another if that is lost."""

TICK_S: Final = 1.0
"""How often the scheduler is asked while tests wait and nothing happens."""


class HostScheduling:
    """Implements xdist's ``Scheduling``.

    :ivar config: where other plugins' ``pytest_handlecrashitem`` expect it, as pytest-rerunfailures does.
    :ivar tests_finished: whether every test runs or has run: xdist asks after each message, and then ends all workers.
    :param channels: to the workers, by their ids; more come when workers are replaced.
    :param needs: of the tests that need hosts, by node id; complete when the first worker has collected.
    """

    def __init__(
        self,
        config: pytest.Config,
        channels: Mapping[str, WorkerChannel],
        needs: Mapping[str, Needs],
        measured_elsewhere: Mapping[str, float],
        *,
        shared_id: str,
    ) -> None:
        self.config = config
        self._earlier = EarlierRuns(config, measured_elsewhere)
        self._channels = channels
        self._needs = needs
        self._expected = number_of_workers(config)
        self._collections: dict[Any, list[str]] = {}
        self._nodes: dict[str, Any] = {}
        self._tests: list[str] = []
        self._indices: dict[str, int] = {}
        self._sent: dict[str, list[str]] = {}
        """By worker, what it has been sent and not finished, in that order."""
        self._placed: dict[str, tuple[str, tuple[str, ...]]] = {}
        """By test that runs, or is in a batch that runs, its worker and its hosts."""
        self._finished: set[str] = set()
        """No test is both placed and finished."""
        self.tests_finished = False
        self._setups: dict[str, float] = {}
        """How long the setup of tests took that have not finished, in s; only of workers that use VMs."""
        self._hosts: dict[str, HostSpec] = {}
        self._machines: dict[str, str] = {}
        self._background = BackgroundLoop()
        self._making: dict[tuple[str, str], float] = {}
        """By host and guest, since when a template is being made, in s since the epoch."""
        self._shared_id = shared_id
        self._ticking = False
        self._ready: set[str] = set()
        self._has_begun = False
        self._scheduler: FleetScheduler

    @property
    def nodes(self) -> list[Any]:
        return list(self._nodes.values())

    @property
    def collection_is_completed(self) -> bool:
        # Workers that have ended are not counted; one that replaces a crashed one is not to wait for them.
        return self._has_begun or len(self._collections) >= self._expected

    @property
    def has_pending(self) -> bool:
        return self._has_begun and len(self._finished) < len(self._tests)

    def end(self) -> None:
        """Keep in pytest's cache how long the tests took, for the plans of later runs; look for no lost hosts."""
        self._background.end(self._templates.aclose if "_templates" in vars(self) else None)
        self._earlier.save()

    def add_node(self, node: Any) -> None:
        self._nodes[node.gateway.id] = node
        self._sent[node.gateway.id] = []

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        if self._tests and list(collection) != self._tests:
            return  # a worker that replaces another one, and has collected otherwise, gets no tests
        self._collections[node] = list(collection)

    def schedule(self) -> None:
        if not self._has_begun:
            self._begin()
        for node in self._collections:
            worker = node.gateway.id
            if worker in self._nodes and worker not in self._ready and not node.shutting_down:
                self._ready.add(worker)
                self._scheduler.worker_ready(worker, own_host=self._own_host(node))
        self._decide()

    def _own_host(self, node: Any) -> str | None:
        """Return the host that a worker runs on, if its gateway or that of its proxy has the id of one."""
        spec = node.gateway.spec
        return next((name for name in (spec.via, spec.id) if name in self._hosts), None)

    def _begin(self) -> None:
        self._has_begun = True
        self._tests = [] if self._collections_differ() else next(iter(self._collections.values()))
        self._indices = {test: index for index, test in enumerate(self._tests)}
        guests = {needs.guest for needs in self._needs.values() if needs.guest is not None}
        hosts = self.config.stash[SETTINGS].hosts
        assert hosts is not None
        specs = probed_inventory(hosts)
        alone = len(specs) == 1 and not is_elsewhere(specs[0])
        self._scheduler = FleetScheduler(
            dict.fromkeys(guests, TEMPLATE_S), latency_s=LATENCY_S if alone else 0.0, one_ahead=True
        )
        remembered = self._earlier.estimates()
        self._scheduler.tests_known(
            [
                Item(test, self._needs.get(test, HOSTLESS), test.partition("::")[0], remembered.get(test))
                for test in self._tests
            ]
        )
        there = self._only_guest() if len(specs) == 1 else frozenset()
        self._machines = {spec.name: machine_of(spec) for spec in specs}
        for spec in specs:
            self._hosts[spec.name] = HostSpec(
                name=spec.name,
                slots=slots_of(spec, specs),
                memory_mib=memory_mib_of(spec, specs),
                cpus=cpus_of(spec),
                labels=spec.labels,
                speed=self._earlier.speed(self._machines[spec.name]),
                templates=there,
            )
            self._scheduler.host_joined(self._hosts[spec.name])
        self._give_up_what_no_host_can_run()

    def _only_guest(self) -> frozenset[str]:
        """Return the guest that all tests need, if there is one.

        Its template is not waited for on an only host: nothing else could run meanwhile, so that the first tests look
        for it themselves, and make it if need be.
        """
        guests = {self._needs.get(test, HOSTLESS).guest for test in self._tests}
        return frozenset(guest for guest in guests if guest is not None) if len(guests) == 1 else frozenset()

    def _collections_differ(self) -> bool:
        """Report workers that have collected other tests than the first one: then none can run, as with xdist."""
        (first, tests), *others = self._collections.items()
        for node, collection in others:
            said = collection_difference(tests, collection, workers=(first.gateway.id, node.gateway.id))
            if said:
                report = pytest.CollectReport(node.gateway.id, "failed", longrepr=said, result=[])
                self.config.hook.pytest_collectreport(report=report)
        return any(collection != tests for _, collection in others)

    def lose_hosts(self, names: Iterable[str]) -> None:
        """Place no more tests on hosts that a worker cannot reach."""
        lost = self._hosts.keys() & set(names)
        for name in lost:
            host = self._hosts.pop(name)
            self._scheduler.host_lost(name)
            self._rejoining.watch(name, partial(self._call, partial(self._rejoin, host)))
        if lost:
            self._give_up_what_no_host_can_run()
            self._decide()

    def _made(self, host: str, guest: str) -> None:
        """A template is there; or it cannot be made, and the tests that need it say why."""
        self._making.pop((host, guest), None)
        self._scheduler.template_made(host, guest)
        self._decide()

    @cached_property
    def _rejoining(self) -> Rejoining:
        from .rejoining import Rejoining

        return Rejoining(self.config.stash[SETTINGS], self._background, shared_id=self._shared_id)

    @cached_property
    def _templates(self) -> TemplatePreparer:
        from ..guests.registry import GuestRegistry
        from .template_preparer import TemplatePreparer

        config = self.config
        say, log_dir = line_printer(config), config.stash[SETTINGS].log_dir
        return TemplatePreparer(
            config.stash[SETTINGS],
            GuestRegistry(chain.from_iterable(config.hook.pytest_propolis_guests(config=config))),
            self._background,
            shared_id=self._shared_id,
            log_dir=(log_dir or base_temporary_directory(config) / "propolis") / "templates",
            say=lambda text: self._call(partial(say, text)),
        )

    def _rejoin(self, host: HostSpec) -> None:
        self._hosts[host.name] = host
        self._scheduler.host_joined(host)
        self._decide()

    def _call(self, function: Callable[[], None]) -> None:
        """Call a function in the controller's thread."""
        call_in_controller(self.config, function, delay_s=0)

    def run_elsewhere(self, worker: str, test: str, lost: Iterable[str]) -> None:
        """Give other hosts to a test of a worker's that runs and has lost its own, as soon as there are any."""
        self.lose_hosts(lost)
        if self._placed.get(test, NOWHERE)[0] == worker:
            self._scheduler.hosts_lost_by(worker)
            self._placed[test] = worker, ()
            self._decide()
        else:
            self._channels[worker].place({test: ()})

    def _relocate(self, worker: str, test: str, hosts: tuple[str, ...]) -> None:
        self._placed[test] = worker, hosts
        self._channels[worker].place({test: hosts})

    def _give_up_what_no_host_can_run(self) -> None:
        """Let such tests start as they are: each is skipped or fails, and says what it lacks."""
        able = cache(lambda needs: sum(host.could_fit(needs) for host in self._hosts.values()))
        begun = self._placed.keys() | self._finished
        for test in self._tests:
            needs = self._needs.get(test)
            if needs is not None and test not in begun and able(needs) < needs.hosts:
                self._scheduler.give_up(test)

    def test_started(self, test: str) -> None:
        """Let the scheduler know that a worker has begun with a test: it may have held it for a while.

        Of a test that needs no host it need not know: nothing waits for its end.
        """
        worker, hosts = self._placed.get(test, NOWHERE)
        if hosts:
            self._scheduler.test_started(worker, test, time.monotonic())

    def reported(self, report: pytest.TestReport) -> None:
        """Count the phases of a test with VMs that xdist does not count: most of the time is often that of a boot."""
        if report.when == "setup" and report.passed:
            self._setups[report.nodeid] = report.duration
        elif report.when == "teardown":
            self._earlier.extend(report.nodeid, report.duration)

    def total(self) -> int:
        return len(self._tests)

    def place(self, test: str) -> tuple[str, tuple[str, ...]]:
        return self._placed.get(test, NOWHERE)

    def waiting(self) -> tuple[WaitingTests, ...]:
        found = self._scheduler.waiting() if self._has_begun else []
        return tuple(WaitingTests(reason=some.reason, count=some.count, tests=some.tests) for some in found)

    def hosts(self, running: int) -> tuple[HostStatus, ...]:
        found = self._scheduler.hosts() if self._has_begun else ()
        return tuple(host_status(state, self._making) for state in found)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        worker, test = node.gateway.id, self._tests[item_index]
        sent = self._sent[worker]
        sent.remove(test)
        hosts = self._placed.pop(test, NOWHERE)[1]
        self._finished.add(test)
        duration += self._setups.pop(test, 0.0)
        self._scheduler.test_finished(worker, test, duration)
        self._earlier.record(test, duration, [self._machines[name] for name in hosts])
        if not (sent and sent[0] in self._placed):  # else the worker goes on with its batch
            self._decide()

    def mark_test_pending(self, item: str) -> None:
        """Run a test again that a crashed worker ran."""
        self._finished.discard(item)
        self._scheduler.run_again(item)
        self._decide()

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        raise AssertionError("no test is taken back from a worker")

    def remove_node(self, node: Any) -> str | None:
        """Let a worker go that has ended.

        :returns: the test that it ran, if it crashed in one.
        """
        worker = node.gateway.id
        del self._nodes[worker]
        self._collections.pop(node, None)
        sent = self._sent.pop(worker)
        placed = [test for test in sent if self._placed.pop(test, None) is not None]
        if worker in self._ready:
            self._ready.remove(worker)
            self._scheduler.worker_lost(worker)
        self._finished.update(placed[:1])  # those behind it in its batch are scheduled anew
        if self._has_begun:
            self._decide()
        return placed[0] if placed else None

    def _decide(self) -> None:
        """Do what the scheduler decides, and see that it is asked again while tests wait."""
        self._let_go()
        for decision in self._scheduler.decide(time.monotonic()):
            match decision:
                case Start():
                    self._start(decision)
                case EndWorker(worker):
                    self._nodes[worker].shutdown()
                case Relocate(worker, test, hosts):
                    self._relocate(worker, test, hosts)
                case BuildTemplate(host, guest):
                    self._making[host, guest] = time.time()
                    self._templates.make(host, guest, partial(self._call, partial(self._made, host, guest)))
        self.tests_finished = self._has_begun and len(self._placed) + len(self._finished) == len(self._tests)
        if self.has_pending and not self._ticking:
            self._ticking = call_in_controller(self.config, self._tick, delay_s=TICK_S)

    def _let_go(self) -> None:
        """Give nothing more to workers that xdist is ending, as after ``--maxfail``: they would not run it."""
        for worker in [name for name in self._ready if self._nodes[name].shutting_down and not self._sent[name]]:
            self._ready.remove(worker)
            self._scheduler.worker_lost(worker)

    def _tick(self) -> None:
        self._ticking = False
        self._decide()

    def _start(self, decision: Start) -> None:
        node, sent = self._nodes[decision.worker], self._sent[decision.worker]
        if decision.hosts:
            self._channels[decision.worker].place(dict.fromkeys(decision.tests, decision.hosts))
        there = set(sent)
        tests = there.intersection(decision.tests) if node.shutting_down else decision.tests
        self._placed |= dict.fromkeys(tests, (decision.worker, decision.hosts))
        if node.shutting_down:  # What it has not been sent is scheduled anew when it has ended.
            return
        ahead = [test for test in decision.tests if test not in there]
        if decision.following is not None and decision.following not in there:
            ahead.append(decision.following)
        sent += ahead
        if ahead:
            node.send_runtest_some([self._indices[test] for test in ahead])
        if decision.following is None:
            node.shutdown()
