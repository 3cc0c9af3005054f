"""Simulated hosts: they run a workload's tests by the rules of `workloads`, and refuse what breaks the rules."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol

from .workloads import Event, Host, Workload

__all__ = ["Cluster", "Driver", "Placement"]


class Driver(Protocol):
    """The notifications to a scheduler in the simulation. It answers by calling the cluster."""

    def begin(self) -> None: ...

    def test_finished(self, placement: Placement, index: int, duration_s: float) -> None: ...

    def placement_lost(self, placement: Placement, lost: int, unstarted: Sequence[int], crashed: bool) -> None: ...

    def template_made(self, host: str, guest: str) -> None: ...

    def host_lost(self, host: str) -> None: ...

    def host_returned(self, host: str) -> None: ...

    def settle(self) -> None:
        """Let the scheduler decide after all events of this time."""


@dataclass(slots=True, eq=False)
class Placement:
    """Tests that run one after the other on the same hosts, and hold the most that any of them needs."""

    number: int
    worker: str
    tests: tuple[int, ...]
    hosts: tuple[SimulatedHost, ...]
    memory_mib: int
    cpus: int
    position: int = 0
    alive: bool = True
    missing: int = 0
    """Templates for which it waits."""


@dataclass(slots=True, eq=False)
class Making:
    """A template that is being made, in a slot of its own or in that of the placement that makes it."""

    host: SimulatedHost
    guest: str
    maker: Placement | None
    waiting: list[Placement] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class SimulatedHost:
    spec: Host
    alive: bool = True
    slots: int = 0
    memory_mib: int = 0
    cpus: int = 0
    warm: set[str] = field(default_factory=set)
    makings: dict[str, Making] = field(default_factory=dict)
    placements: dict[int, Placement] = field(default_factory=dict)

    def reset(self) -> None:
        self.slots, self.memory_mib, self.cpus = self.spec.slots, self.spec.memory_mib, self.spec.cpus
        self.warm, self.makings, self.placements = set(), {}, {}

    def take(self, slots: int, memory_mib: int, cpus: int) -> None:
        self.slots -= slots
        self.memory_mib -= memory_mib
        self.cpus -= cpus
        if min(self.slots, self.memory_mib, self.cpus) < 0:
            raise AssertionError(f"{self.spec.name} is overcommitted")


class Cluster:
    """The hosts of a workload, a clock, and the events in order of time.

    :ivar lost: the tests that were lost, as (when, index), for `workloads.after_losses`.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload: Final = workload
        self.hosts: Final = {host.name: SimulatedHost(host) for host in workload.hosts}
        self.now_s = 0.0
        self.lost: list[tuple[float, int]] = []
        self.left = set(range(len(workload.tests)))
        self._driver: Driver
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        for host in self.hosts.values():
            host.reset()
        for event in workload.events:
            self._at(event.at_s, lambda event=event: self._happen(event))  # type: ignore[misc]

    def run(self, driver: Driver) -> float:
        """Run all tests, and return the makespan in s."""
        self._driver = driver
        driver.begin()
        driver.settle()
        while self.left:
            if not self._agenda:
                raise AssertionError(
                    f"{len(self.left)} tests never ran: nothing is left to happen at {self.now_s:.1f} s"
                )
            self.now_s = self._agenda[0][0]
            while self._agenda and self._agenda[0][0] <= self.now_s:
                heapq.heappop(self._agenda)[2]()
            driver.settle()
        return self.now_s

    def start(self, worker: str, tests: Sequence[int], host_names: Sequence[str]) -> Placement:
        """Run these tests with a worker, in sequence, on these hosts."""
        specs = [self.workload.tests[index] for index in tests]
        hosts = tuple(self.hosts[name] for name in host_names)
        placement = Placement(
            next(self._numbers),
            worker,
            tuple(tests),
            hosts,
            max(spec.memory_mib for spec in specs),
            max(spec.cpus for spec in specs),
        )
        if not self.left.issuperset(tests):
            raise AssertionError(f"test {tests} runs twice")
        for spec in specs:
            if len(set(host_names)) != spec.hosts or spec.guest != specs[0].guest:
                raise AssertionError(f"{spec.id} is placed on {len(host_names)} hosts")
            if not all(host.alive and spec.labels <= host.spec.labels for host in hosts):
                raise AssertionError(f"{spec.id} is placed on a host that cannot run it")
        for host in hosts:
            host.take(1, placement.memory_mib, placement.cpus)
            host.placements[placement.number] = placement
        if self.workload.latency_s:
            self._at(self.now_s + self.workload.latency_s, lambda: self._arrive(placement))
        else:
            self._arrive(placement)
        return placement

    def build(self, host_name: str, guest: str) -> None:
        """Make a template, in a slot of its own."""
        host = self.hosts[host_name]
        if guest in host.warm or guest in host.makings or not host.alive:
            raise AssertionError(f"{host_name} cannot make a template of {guest}")
        host.take(1, 0, 0)
        self._make(host, guest, None)

    def _at(self, at_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._numbers), do))

    def _arrive(self, placement: Placement) -> None:
        if not placement.alive:
            return
        guest = self.workload.tests[placement.tests[0]].guest
        for host in placement.hosts:
            if guest not in host.warm:
                placement.missing += 1
                making = host.makings.get(guest) or self._make(host, guest, placement)
                making.waiting.append(placement)
        if not placement.missing:
            self._run(placement)

    def _make(self, host: SimulatedHost, guest: str, maker: Placement | None) -> Making:
        making = host.makings[guest] = Making(host, guest, maker)
        self._at(self.now_s + self.workload.guests[guest] / host.spec.speed, lambda: self._made(making))
        return making

    def _made(self, making: Making) -> None:
        host = making.host
        if host.makings.get(making.guest) is not making:
            return
        del host.makings[making.guest]
        host.warm.add(making.guest)
        if making.maker is None:
            host.slots += 1
        for placement in making.waiting:
            placement.missing -= 1
            if placement.alive and not placement.missing:
                self._run(placement)
        self._driver.template_made(host.spec.name, making.guest)

    def _run(self, placement: Placement) -> None:
        duration_s = self.workload.tests[placement.tests[placement.position]].duration_s
        duration_s /= min(host.spec.speed for host in placement.hosts)
        self._at(self.now_s + duration_s, lambda: self._finish(placement, duration_s))

    def _finish(self, placement: Placement, duration_s: float) -> None:
        if not placement.alive:
            return
        index = placement.tests[placement.position]
        self.left.remove(index)
        placement.position += 1
        if placement.position < len(placement.tests):
            self._run(placement)
        else:
            self._release(placement)
        self._driver.test_finished(placement, index, duration_s)

    def _release(self, placement: Placement) -> None:
        placement.alive = False
        for host in placement.hosts:
            if host.placements.pop(placement.number, None) is not None:
                host.take(-1, -placement.memory_mib, -placement.cpus)

    def _happen(self, event: Event) -> None:
        host = self.hosts[event.host]
        if event.kind == "host-return":
            host.alive = True
            host.reset()
            self._driver.host_returned(event.host)
        elif event.kind == "host-death":
            placements = list(host.placements.values())
            host.alive = False
            host.reset()
            self._driver.host_lost(event.host)
            for placement in placements:
                self._lose(placement, crashed=False)
        elif host.placements:
            placements = list(host.placements.values())
            self._lose(placements[event.pick % len(placements)], crashed=True)

    def _lose(self, placement: Placement, *, crashed: bool) -> None:
        index = placement.tests[placement.position]
        self.lost.append((self.now_s, index))
        self._release(placement)
        for host in placement.hosts:
            for making in host.makings.values():
                if making.maker is placement:  # the making goes on, and keeps the slot
                    making.maker = None
                    host.take(1, 0, 0)
        self._driver.placement_lost(placement, index, placement.tests[placement.position + 1 :], crashed)
