"""``python -m benchmarks scheduling [PRESET...]``: simulated makespans of this project's scheduler and of xdist's.

Nothing is timed but the scheduler's own processor time, so the machine may be busy.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Final

from ..common.figure import Figure, table
from ..common.options import Options
from .simulated_cluster import Cluster
from .simulated_scheduler import SchedulerDriver
from .simulated_xdist import XDIST, XdistDriver
from .workloads import PRESETS, Workload, after_losses, make

__all__ = ["measure"]

BOUNDS: Final = {
    "laptop": 1.02,
    "rack": 1.20,
    "fleet": 1.12,
    "deep": 1.18,
    "first": 1.25,
    "wrong": 1.28,
    "lonely": 1.18,
    "tides": 1.15,
    "ants": 1.25,
}
"""Makespan over the lower bound, mean of all seeds."""

LARGE: Final = ("fleet", "deep")
"""They take minutes, and are run when they are named."""

XDIST_SHARE: Final = {"rack": 0.7, "fleet": 0.7, "deep": 0.7, "laptop": 1.0, "lonely": 1.0}
"""Makespan over that of the best of xdist's schedulers."""

CPU_US: Final = 50.0
SEEDS: Final = (1, 2, 3, 4, 5)
XDIST_SEEDS: Final = (1,)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a scheduler on one workload.

    :param ratio: its makespan over what no scheduler can beat, with the losses that this run had.
    :param cpu_us: its processor time per test, in microseconds; 0 if it was not taken.
    """

    makespan_s: float
    ratio: float
    cpu_us: float


def measure(options: Options) -> list[Figure]:
    """Measure all presets except the large ones, with one seed per repeat."""
    seeds = SEEDS[: options.repeats] if options.repeats else SEEDS
    return figures([name for name in PRESETS if name not in LARGE], seeds, xdist=True)


def figures(presets: list[str], seeds: tuple[int, ...], *, xdist: bool) -> list[Figure]:
    """Measure presets: against the lower bound, and against xdist's schedulers where there is a bound for that."""
    rows: list[Figure] = []
    for preset in presets:
        ours = [run(preset, seed) for seed in seeds]
        rows.append(_against_bound(preset, ours, seeds))
        if xdist and preset in XDIST_SHARE:
            rows += [_against_xdist(preset, seed, ours[seeds.index(seed)]) for seed in XDIST_SEEDS if seed in seeds]
        if preset == "rack":
            rows.append(_one_ahead(seeds, ours))
    return rows


def run(preset: str, seed: int, *, one_ahead: bool = False) -> Outcome:
    """Run this project's scheduler."""
    workload, cluster = _cluster(preset, seed)
    driver = SchedulerDriver(cluster, one_ahead=one_ahead)
    makespan_s = cluster.run(driver)
    return Outcome(makespan_s, makespan_s / _least(workload, cluster), 1e6 * driver.cpu_s / len(workload.tests))


def run_xdist(preset: str, seed: int, policy: str) -> Outcome:
    """Run one of xdist's schedulers."""
    workload, cluster = _cluster(preset, seed)
    makespan_s = cluster.run(XdistDriver(cluster, policy))
    return Outcome(makespan_s, makespan_s / _least(workload, cluster), 0.0)


def _cluster(preset: str, seed: int) -> tuple[Workload, Cluster]:
    workload = _workload(preset, seed)
    return workload, Cluster(workload)


@cache
def _workload(preset: str, seed: int) -> Workload:
    return make(preset, seed)


def _least(workload: Workload, cluster: Cluster) -> float:
    """Return a lower bound for runs with the losses of this one, in s."""
    return after_losses(workload, cluster.lost)


def _against_bound(preset: str, ours: list[Outcome], seeds: tuple[int, ...]) -> Figure:
    ratio = mean(outcome.ratio for outcome in ours)
    cpu_us = mean(outcome.cpu_us for outcome in ours)
    return Figure(
        name=f"{preset}, seeds {', '.join(map(str, seeds))}: makespan over its lower bound",
        measured=f"{mean(outcome.makespan_s for outcome in ours):.0f} s, {cpu_us:.0f} us per test",
        ratio=f"{ratio:.3f} (largest {max(outcome.ratio for outcome in ours):.3f})",
        bound=f"<= {BOUNDS[preset]}" + (f", <= {CPU_US:.0f} us" if preset == "fleet" else ""),
        met=ratio <= BOUNDS[preset] and (preset != "fleet" or cpu_us <= CPU_US),
    )


def _against_xdist(preset: str, seed: int, ours: Outcome) -> Figure:
    theirs = {policy: run_xdist(preset, seed, policy).makespan_s for policy in XDIST}
    best = min(theirs, key=lambda policy: theirs[policy])
    ratio = ours.makespan_s / theirs[best]
    return Figure(
        name=f"{preset}, seed {seed}: against xdist's best, {best}",
        measured=f"{ours.makespan_s:.0f} s",
        floor=", ".join(f"{policy} {seconds:.0f} s" for policy, seconds in theirs.items()),
        ratio=f"{ratio:.2f}",
        bound=f"<= {XDIST_SHARE[preset]}",
        met=ratio <= XDIST_SHARE[preset],
    )


def _one_ahead(seeds: tuple[int, ...], free: list[Outcome]) -> Figure:
    """Return the cost of the rule of xdist's workers."""
    bound = [run("rack", seed, one_ahead=True) for seed in seeds]
    ratio = mean(outcome.ratio for outcome in bound) / mean(outcome.ratio for outcome in free)
    return Figure(
        name="rack: with xdist's one test ahead against without",
        measured=f"{mean(outcome.ratio for outcome in bound):.3f}, "
        f"{mean(outcome.cpu_us for outcome in bound):.0f} us per test",
        floor=f"{mean(outcome.ratio for outcome in free):.3f}",
        ratio=f"{ratio:.3f}",
        bound="<= 1.03",
        met=ratio <= 1.03,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scheduling", description=__doc__)
    parser.add_argument(
        "presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)}; default: all but {LARGE}"
    )
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="default: %(default)s")
    parser.add_argument("--no-xdist", action="store_true", help="do not run xdist's schedulers")
    given = parser.parse_args()
    if unknown := [name for name in given.presets if name not in PRESETS]:
        parser.error(f"there is no preset {', '.join(unknown)}; there are {', '.join(PRESETS)}")
    presets = given.presets or [name for name in PRESETS if name not in LARGE]
    seeds = tuple(int(seed) for seed in given.seeds.split(","))
    print(table(figures(presets, seeds, xdist=not given.no_xdist)))


if __name__ == "__main__":
    main()
