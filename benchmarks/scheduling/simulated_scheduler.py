"""This project's scheduler in the simulation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from pytest_propolis.distribution.scheduling import (
    BuildTemplate,
    FleetScheduler,
    HostSpec,
    Item,
    Needs,
    Scheduler,
    Start,
)

from . import workloads
from .simulated_cluster import Cluster, Placement

__all__ = ["SchedulerDriver"]

WORKERS_PER_SLOT = 1.1
"""A worker is cheap, and a host's slot is not."""


class SchedulerDriver:
    """Notifies the scheduler of events in the cluster, and executes its decisions.

    :param one_ahead: impose the rule of xdist's workers: one starts a test only when it knows the next one, or that
        there is none, and what it holds as its next cannot be taken back.
    :ivar cpu_s: processor time that the scheduler has taken.
    """

    def __init__(self, cluster: Cluster, *, one_ahead: bool = False) -> None:
        workload = cluster.workload
        self.cpu_s = 0.0
        self._cluster = cluster
        self._one_ahead = one_ahead
        self._items = [_item(test) for test in workload.tests]
        self._indices = {item.id: index for index, item in enumerate(self._items)}
        self._hosts = {
            host.name: HostSpec(host.name, host.slots, host.memory_mib, host.cpus, host.labels, host.speed)
            for host in workload.hosts
        }
        self._held: dict[str, int | None] = {}
        """Worker -> what it holds as its next; None if it ends."""
        self._events: list[Callable[[], object]] = []
        self._numbers = count()
        self.scheduler: Scheduler = FleetScheduler(workload.guests, latency_s=workload.latency_s, one_ahead=one_ahead)

    def begin(self) -> None:
        self._tell(lambda: self.scheduler.tests_known(self._items))
        for host in self._hosts.values():
            self._tell(partial(self.scheduler.host_joined, host))
        for _ in range(int(sum(host.slots for host in self._hosts.values()) * WORKERS_PER_SLOT) + 1):
            self._hire()

    def test_finished(self, placement: Placement, index: int, duration_s: float) -> None:
        self._tell(partial(self.scheduler.test_finished, placement.worker, self._items[index].id, duration_s))
        if not placement.alive:
            self._replace_if_ended(placement.worker)

    def placement_lost(self, placement: Placement, lost: int, unstarted: Sequence[int], crashed: bool) -> None:
        if crashed:
            self._tell(partial(self.scheduler.worker_lost, placement.worker, again=True))
            self._held.pop(placement.worker, None)
            self._hire()
        else:
            self._tell(partial(self.scheduler.test_lost, placement.worker))
            self._replace_if_ended(placement.worker)

    def template_made(self, host: str, guest: str) -> None:
        self._tell(partial(self.scheduler.template_made, host, guest))

    def host_lost(self, host: str) -> None:
        self._tell(partial(self.scheduler.host_lost, host))

    def host_returned(self, host: str) -> None:
        self._tell(partial(self.scheduler.host_joined, self._hosts[host]))

    def settle(self) -> None:
        # What has happened is told here, all at once: reading the clock may take longer than the scheduler.
        start_s = time.thread_time()
        for tell in self._events:
            tell()
        decisions = self.scheduler.decide(self._cluster.now_s)
        self.cpu_s += time.thread_time() - start_s
        self._events.clear()
        for decision in decisions:
            if isinstance(decision, Start):
                self._start(decision)
            elif isinstance(decision, BuildTemplate):
                self._cluster.build(decision.host, decision.guest)

    def _start(self, decision: Start) -> None:
        tests = [self._indices[test] for test in decision.tests]
        if self._one_ahead:
            held = self._held.pop(decision.worker, tests[0])
            if held != tests[0]:
                raise AssertionError(f"{decision.worker} holds another test than {decision.tests[0]}")
            self._held[decision.worker] = None if decision.following is None else self._indices[decision.following]
        self._cluster.start(decision.worker, tests, decision.hosts)

    def _replace_if_ended(self, worker: str) -> None:
        """Start a new worker for one that has ended: a test that was lost late may need it."""
        if self._one_ahead and self._held.get(worker, -1) is None:
            del self._held[worker]
            if len(self._held) < len(self._cluster.left):
                self._hire()

    def _hire(self) -> None:
        self._tell(partial(self.scheduler.worker_ready, f"gw{next(self._numbers)}"))

    def _tell(self, event: Callable[[], object]) -> None:
        self._events.append(event)


def _item(test: workloads.Test) -> Item:
    needs = Needs(guest=test.guest, memory_mib=test.memory_mib, cpus=test.cpus, hosts=test.hosts, labels=test.labels)
    return Item(test.id, needs, test.id.partition("::")[0], test.estimate_s)
