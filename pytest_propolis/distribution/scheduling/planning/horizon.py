"""When a run will probably end."""

from __future__ import annotations

from ..backlog import Backlog
from ..fleet import Fleet

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
    speed = sum(s.speed * min(s.host.slots, s.host.cpus / cpus if cpus else s.host.slots) for s in fleet.living)
    span_s = work_s / PACKING / speed if speed else 0.0
    for demand in backlog.demands:
        if demand.count:
            span_s = max(span_s, min(demand.longest_s, longest_s) / (demand.fastest or 1.0))
    return span_s
