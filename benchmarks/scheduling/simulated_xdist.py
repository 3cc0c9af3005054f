"""xdist's own schedulers in the simulation: they choose the worker and the order, a plain first fit the hosts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from xdist.scheduler import LoadScheduling, LoadScopeScheduling, WorkStealingScheduling

from .simulated_cluster import Cluster, Placement, SimulatedHost
from .workloads import Test

__all__ = ["XDIST", "XdistDriver"]

XDIST: Final[dict[str, Any]] = {
    "load": LoadScheduling,
    "loadscope": LoadScopeScheduling,
    "worksteal": WorkStealingScheduling,
}


@dataclass(eq=False)
class Node:
    """A worker as an xdist scheduler sees it, with its queue, whose head runs or waits for hosts."""

    name: str
    driver: XdistDriver
    queue: deque[int] = field(default_factory=deque)
    shutting_down: bool = False
    busy: bool = False

    @property
    def gateway(self) -> SimpleNamespace:
        return SimpleNamespace(id=self.name)

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.queue.extend(indices)
        self.driver.woken.append(self)

    def send_steal(self, indices: Sequence[int]) -> None:
        # As xdist's worker: what runs, and what it holds as the next, cannot be taken back.
        stolen = set(indices) - set(islice(self.queue, 2))
        self.driver.stolen.append((self, [index for index in self.queue if index in stolen]))
        self.queue = deque(index for index in self.queue if index not in stolen)

    def shutdown(self) -> None:
        self.shutting_down = True
        self.driver.woken.append(self)


class XdistDriver:
    """One worker per slot. A test that a worker starts waits for hosts; the longest waiting test that fits goes first.

    Of the hosts that fit now the fastest warm ones are taken; if there are none, templates are made. A lost test runs
    again in the same worker at once, which is the best that could happen to it.
    """

    def __init__(self, cluster: Cluster, policy: str) -> None:
        self.woken: list[Node] = []
        self.stolen: list[tuple[Node, list[int]]] = []
        self._cluster = cluster
        self._tests = cluster.workload.tests
        self._waiting: dict[tuple[Any, ...], deque[tuple[int, Node, int]]] = {}
        self._asked = 0
        self._changed: set[str] = set()
        self._hosts = sorted(cluster.hosts.values(), key=lambda host: -host.spec.speed)
        self._eligible: dict[frozenset[str], list[SimulatedHost]] = {}
        slots = sum(host.slots for host in cluster.hosts.values())
        config = SimpleNamespace(
            getvalue=lambda _: [f"{slots}*popen"],
            getoption=lambda _: None,
            option=SimpleNamespace(loadscopereorder=True),
        )
        self._scheduling = XDIST[policy](cast(pytest.Config, config), _Silence())
        self._nodes = {f"gw{number}": Node(f"gw{number}", self) for number in range(slots)}

    def begin(self) -> None:
        ids = _Collection(test.id for test in self._tests)
        known = getattr(self._scheduling, "registered_collections", None)
        for node in self._nodes.values():
            self._scheduling.add_node(node)
            # Not by add_node_collection, which would copy the list for each of 7,000 workers.
            (self._scheduling.node2collection if known is None else known)[node] = ids
        self._scheduling.schedule()

    def test_finished(self, placement: Placement, index: int, duration_s: float) -> None:
        self._changed.update(host.spec.name for host in placement.hosts)
        node = self._nodes[placement.worker]
        node.queue.popleft()
        node.busy = False
        self._scheduling.mark_test_complete(node, index, duration_s)
        self.woken.append(node)

    def placement_lost(self, placement: Placement, lost: int, unstarted: Sequence[int], crashed: bool) -> None:
        self._changed.update(host.spec.name for host in placement.hosts)
        node = self._nodes[placement.worker]
        node.busy = False
        self.woken.append(node)

    def template_made(self, host: str, guest: str) -> None:
        self._changed.add(host)

    def host_lost(self, host: str) -> None: ...

    def host_returned(self, host: str) -> None:
        self._changed.add(host)

    def settle(self) -> None:
        while self.woken or self.stolen:
            while self.stolen:
                node, indices = self.stolen.pop()
                self._scheduling.remove_pending_tests_from_node(node, indices)
            woken, self.woken = self.woken, []
            for node in woken:
                if not node.busy and node.queue and (len(node.queue) > 1 or node.shutting_down):
                    node.busy = True
                    self._ask(node)
        self._serve()

    def _ask(self, node: Node) -> None:
        index = node.queue[0]
        test = self._tests[index]
        self._asked += 1
        if not self._place(node, index):
            kind = (test.guest, test.labels, test.memory_mib, test.cpus, test.hosts)
            self._waiting.setdefault(kind, deque()).append((self._asked, node, index))

    def _serve(self) -> None:
        """Assign released hosts to waiting tests."""
        if not self._changed:
            return
        hosts = [self._cluster.hosts[name] for name in self._changed]
        self._changed.clear()
        queues = sorted((queue for queue in self._waiting.values() if queue), key=lambda queue: queue[0][0])
        for queue in queues:
            while queue and any(_fits(host, self._tests[queue[0][2]]) for host in hosts):
                _, node, index = queue[0]
                if not self._place(node, index):
                    break
                queue.popleft()

    def _place(self, node: Node, index: int) -> bool:
        test = self._tests[index]
        if test.labels not in self._eligible:
            self._eligible[test.labels] = [host for host in self._hosts if test.labels <= host.spec.labels]
        fit = [host for host in self._eligible[test.labels] if _fits(host, test)]
        if len(fit) < test.hosts:
            return False
        fit.sort(key=lambda host: (test.guest not in host.warm, test.guest not in host.makings))  # stable: fast first
        self._cluster.start(node.name, [index], [host.spec.name for host in fit[: test.hosts]])
        return True


def _fits(host: SimulatedHost, test: Test) -> bool:
    return (
        host.slots > 0
        and host.cpus >= test.cpus
        and host.memory_mib >= test.memory_mib
        and host.alive
        and test.labels <= host.spec.labels
    )


class _Silence:
    """A log that writes nothing."""

    def __getattr__(self, name: str) -> _Silence:
        return self

    def __call__(self, *_: object) -> None: ...


class _Collection(list[str]):
    """Node ids whose positions are known: xdist looks for them one by one, which takes minutes in a large run."""

    def index(self, value: str, *_: Any) -> int:
        if not hasattr(self, "_positions"):
            self._positions = {nodeid: position for position, nodeid in enumerate(self)}
        return self._positions[value]
