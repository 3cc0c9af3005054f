"""Why a test has not started."""

from __future__ import annotations

from .needs import Needs
from .state import RunState

__all__ = ["reason"]


def reason(run: RunState, index: int) -> str:
    """Say in a sentence why a test has not started, for a person."""
    if index in run.finished:
        return "it has run"
    for running in run.running.values():
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
