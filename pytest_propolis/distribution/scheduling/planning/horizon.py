"""When a run will probably end."""

from __future__ import annotations

from ..backlog import Backlog
from ..fleet import Fleet
from ..host import HostSpec

__all__ = ["remaining_s"]

PACKING: float = 0.95
"""The share of the slots that is really used."""


def remaining_s(backlog: Backlog, fleet: Fleet, running_s: float, longest_s: float) -> float:
    """Return how long the rest of the run will probably take.

    :param running_s: slot seconds that all running tests will probably still take, on hosts of speed 1.0.
    :param longest_s: how long a test takes at most, as far as is known: unknown tests rank as longer than any other.
    """
    work_s = backlog.work_s + running_s
    cpus = backlog.cpu_work_s / backlog.work_s if backlog.work_s > 0 else 0.0
    memory_mib = backlog.memory_work_s / backlog.work_s if backlog.work_s > 0 else 0.0
    speed = sum([state.speed * _at_once(state.host, cpus, memory_mib) for state in fleet.living])
    span_s = work_s / PACKING / speed if speed else 0.0
    for demand in backlog.demands:
        # Most demands need not be looked into: their longest tests end in time on each host that counts.
        if demand.count and min(demand.longest_s, longest_s) > span_s * demand.slowest:
            span_s = max(span_s, demand.span_s(longest_s))
    return span_s


def _at_once(host: HostSpec, cpus: float, memory_mib: float) -> float:
    """Return how many tests a host runs at the same time that need so much on average."""
    tests = float(host.slots)
    if cpus > 0:
        tests = min(tests, host.cpus / cpus)
    if memory_mib > 0:
        tests = min(tests, host.memory_mib / memory_mib)
    return tests
