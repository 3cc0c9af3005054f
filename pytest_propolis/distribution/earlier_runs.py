"""What earlier runs measured, in pytest's cache: how long each test took, and how fast each machine was.

A machine's speed is seen where its tests took longer or shorter than they did elsewhere. Only the speeds of machines
relative to each other count, so that a day on which all tests are slow changes none of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest

from ..hosts.host import HostSpec
from ..hosts.kinds import is_elsewhere
from .scheduling.planning.durations import SMALLEST_S

__all__ = ["EarlierRuns", "machine_of"]

DURATIONS: Final = "propolis/durations"
"""Node id -> seconds on a machine of speed 1.0."""

SPEEDS: Final = "propolis/speeds"
"""Machine -> speed: on one of 0.5, a test takes twice as long as on one of 1.0."""

LOCAL_MACHINE: Final = "this machine"
"""No host of an inventory can have this name."""

COMPARED_S: Final = 0.1
"""What takes less says nothing of a machine: it waits for messages most of the time."""

ENOUGH: Final = 8
"""How many such tests show how fast a machine is."""

TRUST: Final = 0.5
"""How far a known speed moves to what one run shows."""

SLOWEST: Final = 0.05


def machine_of(host: HostSpec) -> str:
    """Return what a host shares its speed with: local hosts are all on this machine."""
    return host.name if is_elsewhere(host) else LOCAL_MACHINE


class EarlierRuns:
    """Reads the cache when it is made, and saves there what this run measures.

    :param elsewhere: how many seconds tests took in runs that this cache knows nothing of.
    """

    def __init__(self, config: pytest.Config, elsewhere: Mapping[str, float]) -> None:
        self._cache: pytest.Cache | None = getattr(config, "cache", None)  # None with -p no:cacheprovider
        self._remembered = self._numbers(DURATIONS)
        self._speeds = {name: speed for name, speed in self._numbers(SPEEDS).items() if speed > 0}
        self._elsewhere = elsewhere
        self._took: dict[str, float] = {}
        self._machines: dict[str, tuple[str, ...]] = {}

    def estimates(self) -> dict[str, float]:
        """Return how many seconds tests take on a machine of speed 1.0, by node id."""
        return {**self._elsewhere, **self._remembered}

    def speed(self, machine: str) -> float:
        """Return the speed of a machine: 1.0 until it is known."""
        return self._speeds.get(machine, 1.0)

    def record(self, test: str, duration_s: float, machines: Iterable[str] = ()) -> None:
        """Record how long a test took.

        :param machines: those of its hosts; none if it needs no host.
        """
        self._took[test] = duration_s
        if machines:
            self._machines[test] = tuple(machines)

    def extend(self, test: str, duration_s: float) -> None:
        """Add to the duration of a test that is recorded, as by its teardown."""
        if test in self._took:
            self._took[test] += duration_s

    def save(self) -> None:
        """Write into the cache what this run measured."""
        if self._cache is None or not self._took:
            return
        self._speeds |= self._measured_speeds()
        measured = {test: self._on_reference(test, seconds) for test, seconds in self._took.items()}
        self._cache.set(DURATIONS, self._remembered | measured)
        if self._speeds:
            self._cache.set(SPEEDS, {name: round(speed, 3) for name, speed in self._speeds.items()})

    def _numbers(self, key: str) -> dict[str, float]:
        found: Any = self._cache.get(key, {}) if self._cache is not None else {}
        if not isinstance(found, dict):
            return {}
        return {name: float(number) for name, number in found.items() if isinstance(number, int | float)}

    def _on_reference(self, test: str, seconds: float) -> float:
        machines = self._machines.get(test)
        slowest = min(map(self.speed, machines)) if machines else 1.0
        return round(max(seconds * slowest, SMALLEST_S), 4)

    def _measured_speeds(self) -> dict[str, float]:
        """Return the speeds of the machines that this run shows, if it shows several."""
        seen = {name: middle for name, ratios in self._ratios().items() if (middle := _median(ratios)) is not None}
        if len(seen) < 2:
            return {}
        known = {name: math.log(self._speeds[name]) for name in seen if name in self._speeds}
        # What all machines have in common is not theirs: all tests are slower today.
        in_common = sum(seen[name] - known.get(name, 0.0) for name in known or seen) / len(known or seen)
        return {
            name: max(SLOWEST, math.exp(_moved(known.get(name), middle - in_common))) for name, middle in seen.items()
        }

    def _ratios(self) -> dict[str, list[tuple[float, float]]]:
        """Return by machine the estimate over the duration of each test, as a logarithm, and its weight."""
        ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for test, machines in self._machines.items():
            estimate_s, duration_s = self._remembered.get(test, 0.0), self._took[test]
            if len(set(machines)) == 1 and min(estimate_s, duration_s) >= COMPARED_S:
                ratios[machines[0]].append((math.log(estimate_s / duration_s), estimate_s))
        return ratios


def _median(weighted: list[tuple[float, float]]) -> float | None:
    """Return the value in the middle of the weights; None if there are too few."""
    if len(weighted) < ENOUGH:
        return None
    half = sum(weight for _, weight in weighted) / 2
    for value, weight in sorted(weighted):
        half -= weight
        if half <= 0:
            return value
    return None


def _moved(known: float | None, seen: float) -> float:
    return seen if known is None else known + TRUST * (seen - known)
