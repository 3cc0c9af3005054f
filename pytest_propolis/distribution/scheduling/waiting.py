"""Why tests have not started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .needs import Needs
from .state import RunState

__all__ = ["Waiting", "reason", "reasons"]

NAMED: Final = 5
"""How many tests are named of those that wait for the same reason."""

SET_ASIDE: Final = "it was lost too often: the other tests go first"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Tests that wait for the same reason.

    :param tests: some of them.
    """

    reason: str
    count: int
    tests: tuple[str, ...]


def reasons(run: RunState) -> Iterator[Waiting]:
    """Yield why tests have not started, by their needs; it takes no longer for many tests than for few."""
    for queue in run.backlog.queues:
        if queue.tests:
            longest = [run.items[index].id for _, index in queue.tests[: -NAMED - 1 : -1]]
            yield Waiting(_unplaced(run, queue.needs), len(queue.tests), tuple(longest))
    if run.set_aside:
        tests = tuple(run.items[index].id for index in run.set_aside[:NAMED])
        yield Waiting(SET_ASIDE, len(run.set_aside), tests)
    held = [*run.workers.following.values(), *run.workers.holders]
    for index in dict.fromkeys([*held, *(gathering.index for gathering in run.gatherings.active)]):
        yield Waiting(reason(run, index), 1, (run.items[index].id,))


def reason(run: RunState, index: int) -> str:
    """Say in a sentence why a test has not started, for a person."""
    if index in run.finished:
        return "it has run"
    for running in run.running.values():
        if running.tests[running.done] == index and running.worker in run.displaced:
            break
        if index in running.tests[running.done :]:
            place = "on " + ", ".join(state.host.name for state in running.hosts) if running.hosts else "without a host"
            if running.tests[running.done] == index:
                return f"it runs {place}"
            return f"it is in a batch that runs {place}"
    for worker, held in run.workers.following.items():
        if held == index:
            return f"worker {worker} holds it as its next and runs {run.items[run.running[worker].tests[-1]].id}"
    for gathering in run.gatherings.active:
        if gathering.index == index:
            missing = ", ".join(state.host.name for state in gathering.missing)
            return f"{len(gathering.taken)} of its {gathering.needs.hosts} hosts are kept for it; {missing} will follow"
    if index in run.set_aside:
        return SET_ASIDE
    return _unplaced(run, run.items[index].needs)


def _unplaced(run: RunState, needs: Needs) -> str:
    if needs.hosts == 0:
        return "no worker is free"
    able = run.fleet.able(needs)
    if len(able) < needs.hosts:
        return f"it needs {_hosts(needs.hosts)} with {_demand(needs)}, and there are {len(able)}"
    warm = run.fleet.warm(needs)
    if len(warm) < needs.hosts:
        building = [state.host.name for state in able if needs.guest in state.building]
        if building:
            return f"the template of {needs.guest} is being made on {', '.join(building)}"
        return f"no slot was free yet to make a template of {needs.guest}"
    free = [state for state in warm if state.fits(needs)]
    if len(free) < needs.hosts:
        if sum(state.slots > 0 for state in warm) < needs.hosts:
            slots = sum(state.host.slots for state in warm)
            return (
                f"{sum(state.slots for state in warm)} of the {slots} slots of the hosts that can run it now are free"
            )
        return f"{len(free)} of the {_hosts(len(warm))} that can run it now have room for {_demand(needs)}"
    return "longer tests go first" if run.workers.empty else "no worker is free"


def _hosts(number: int) -> str:
    return f"{number} host" if number == 1 else f"{number} hosts"


def _demand(needs: Needs) -> str:
    parts = [f"{needs.cpus} CPUs" if needs.cpus != 1 else "1 CPU", f"{needs.memory_mib} MiB"]
    parts += [f"label {label}" for label in sorted(needs.labels)]
    if needs.exclusive:
        parts.append("nothing else running")
    return ", ".join(parts)
