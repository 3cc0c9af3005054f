"""The scheduler of tests that need hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import final

from .decision import Decision, EndWorker
from .dispatcher import Dispatcher
from .host import HostSpec, HostState
from .item import Item
from .protocol import Scheduler
from .state import RunState
from .waiting import Waiting, reason, reasons

__all__ = ["FleetScheduler"]


@final
class FleetScheduler(Scheduler):
    """Runs the longest tests first, on hosts that have their templates.

    :param build_s: guest -> how long its template takes on a host of speed 1.0, in s; 0 for those that are not in it.
    :param latency_s: how long a message takes to a worker. Tests that are hardly longer are sent in batches.
    :param one_ahead: a worker starts a test only when it knows the next one, or that there is none, and what it holds
        as its next cannot be taken back; as the workers of pytest-xdist. Then `Start` says what follows.
    """

    def __init__(
        self, build_s: Mapping[str, float] | None = None, *, latency_s: float = 0.0, one_ahead: bool = False
    ) -> None:
        self._run = RunState()
        self._dispatcher = Dispatcher(
            self._run, defaultdict(float, build_s or {}), latency_s=latency_s, one_ahead=one_ahead
        )
        self._joined: list[HostState] = []

    def tests_known(self, items: Sequence[Item]) -> None:
        self._run.know(items)
        self._run.awake = True

    def host_joined(self, host: HostSpec) -> None:
        if host.name in self._run.fleet.hosts and self._run.fleet.hosts[host.name].alive:
            self.host_lost(host.name)
        state = self._run.fleet.add(host)
        self._run.changed.add(state)
        self._run.gatherings.host_joined(host)
        self._joined.append(state)

    def host_lost(self, name: str) -> tuple[str, ...]:
        run = self._run
        lost = run.fleet.hosts[name]
        if not lost.alive:
            return ()
        run.fleet.lose(name)
        self._joined = [state for state in self._joined if state is not lost]
        for gathering in run.gatherings.host_lost(name):
            run.changed.update((*gathering.taken, *gathering.missing))
            if gathering.displaced:
                run.displaced[gathering.worker] = False
            elif gathering.held:
                run.workers.holders[gathering.index] = gathering.worker
                run.hold(gathering.index)
            else:
                run.workers.ready(gathering.worker)
                run.wait(gathering.index)
        there = [running for running in run.running.values() if lost in running.hosts]
        return tuple(run.items[running.tests[running.done]].id for running in there)

    def worker_ready(self, worker: str, *, own_host: str | None = None) -> None:
        self._run.workers.join(worker, own_host)

    def worker_lost(self, worker: str, *, again: bool = False) -> tuple[str, ...]:
        run = self._run
        lost = self.test_lost(worker, again=again) if worker in run.running else ()
        for gathering in run.gatherings.worker_lost(worker):
            run.changed.update((*gathering.taken, *gathering.missing))
            run.wait(gathering.index)
        held = run.workers.lose(worker)
        if held is not None:
            run.unhold(held)
            run.gatherings.unbind(held)
            run.wait(held)
            run.awake = True
        return lost

    def test_started(self, worker: str, test: str, now_s: float) -> None:
        running = self._run.running[worker]
        if running.tests[0] == self._run.indices[test]:
            running.since_s = now_s

    def test_finished(self, worker: str, test: str, duration_s: float) -> None:
        run = self._run
        running, index = run.running[worker], run.indices[test]
        if running.tests[running.done] != index:
            raise ValueError(f"{worker} does not run {test}")
        running.done += 1
        run.finished.add(index)
        if running.done == len(running.tests):
            run.release(worker)
        if reestimated := run.durations.finished(index, duration_s * running.speed):
            run.backlog.update(reestimated, run.durations.estimate)

    def test_lost(self, worker: str, *, again: bool = True) -> tuple[str, ...]:
        run = self._run
        running = run.release(worker)
        lost, *unstarted = running.tests[running.done :]
        for index in unstarted:
            run.wait(index)
        if again:
            run.wait_again(lost, with_host=not all(state.alive for state in running.hosts))
        else:
            run.finished.add(lost)
        run.awake = True
        return (run.items[lost].id,)

    def hosts_lost_by(self, worker: str) -> None:
        self._run.displace(worker)

    def run_again(self, test: str) -> None:
        run, index = self._run, self._run.indices[test]
        run.finished.discard(index)
        run.wait_again(index)
        run.awake = True

    def give_up(self, test: str) -> bool:
        run, index = self._run, self._run.indices[test]
        if index in run.backlog:
            run.backlog.remove(index)
            run.forgo_hosts(index)
            run.wait(index)
        elif index in run.workers.holders:
            run.backlog.unhold(index, run.queue(index))
            run.forgo_hosts(index)
            run.hold(index)
        elif index in run.workers.following.values() or index in run.set_aside:
            run.forgo_hosts(index)
        else:
            return False
        return True

    def template_made(self, host: str, guest: str) -> None:
        state = self._run.fleet.hosts[host]
        if state.alive:
            state.end_building(guest, made=True)
            self._run.fleet.refresh(state)
            self._run.gatherings.template_made(state.host, guest)
            self._run.changed.add(state)

    def decide(self, now_s: float) -> list[Decision]:
        run = self._run
        joined, self._joined = self._joined, []
        decisions = self._dispatcher.decide(now_s, joined)
        if len(run.finished) == len(run.items):
            decisions += [EndWorker(worker) for worker in run.workers.dismiss()]
        return decisions

    def hosts(self) -> Sequence[HostState]:
        return list(self._run.fleet.hosts.values())

    def waiting(self) -> list[Waiting]:
        return list(reasons(self._run))

    def why_waiting(self, test: str) -> str:
        return reason(self._run, self._run.indices[test])
