"""How long tests take: from earlier runs, corrected by what this run has shown of their neighbours."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from ..item import Item

__all__ = ["SMALLEST_S", "Durations", "Estimate"]

UNMEASURED_MEAN_S: Final = 15.0
UNMEASURED_LONG_S: Final = 60.0
"""What is expected of the tests of a run before anything was ever measured. Only the order of magnitude matters."""

LONG_QUANTILE: Final = 0.9
"""Of all tests with a measured duration, those above this share count as long."""

LONGEST_QUANTILE: Final = 0.99

DOUBT: Final = math.log(3.0)
"""By what factor (as a logarithm) a module's results must differ from its estimates before these are corrected."""

CAUTION: Final = 2.0
"""How much earlier than a long test one of unknown duration starts, in durations of a long test."""

ENOUGH: Final = 10
"""How many results of a module show how long its other tests take."""

MORE: Final = 1.1
"""By what factor the results of a module grow until they are ordered again."""

SMALLEST_S: Final = 1e-4

UNRANKED_S: Final = 1e9
"""What a test counts without an estimate where the shortest test is looked for."""


class Estimate(NamedTuple):
    """What is expected of a test, on a host of speed 1.0.

    :param mean_s: its probable duration: what it counts as work.
    :param rank_s: by what it is ordered: as mean_s, but higher if it is unknown. One that turns out to be long had
        better have started early, and one that turns out to be short costs no more early than late.
    """

    mean_s: float
    rank_s: float


class Durations:
    """The estimates of all tests of a run."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._modules: dict[str, _Module] = {}
        self._prior = Estimate(UNMEASURED_MEAN_S, UNMEASURED_LONG_S)
        self.longest_s = UNMEASURED_LONG_S
        """How long a test takes at most, outliers aside."""

    def add(self, items: Sequence[Item]) -> None:
        """Add tests, whose indices follow the existing ones."""
        for index, item in enumerate(items, len(self._items)):
            module = self._modules.get(item.module)
            if module is None:
                module = self._modules[item.module] = _Module()
            module.add(index, item.estimate_s, follows=item.needs.hosts > 0)
        self._items += items
        known = sorted(item.estimate_s for item in self._items if item.estimate_s is not None)
        if known:
            self.longest_s = known[int(LONGEST_QUANTILE * len(known))]
            self._prior = Estimate(sum(known) / len(known), known[int(LONG_QUANTILE * len(known))])

    def estimate(self, index: int) -> Estimate:
        item = self._items[index]
        return self._modules[item.module].estimate(item.estimate_s, self._prior)

    def likely_s(self, index: int) -> float:
        """Return how long a test takes in nine of ten cases: of one without an estimate, as the results show.

        `estimate` is more careful with few results: it counts what a long test would delay.
        """
        item = self._items[index]
        module = self._modules[item.module]
        if item.estimate_s is not None or len(module.results) < ENOUGH:
            return self.estimate(index).mean_s
        return module.long_s()

    def probes(self) -> Iterable[int]:
        """Return one test of each module, the shortest that is known: those that show how their modules behave."""
        return [module.probe for module in self._modules.values()]

    def finished(self, index: int, duration_s: float) -> Collection[int]:
        """Learn the duration of a test on a host of speed 1.0.

        :returns: the tests that are estimated otherwise than before, without those that need no host: they delay
            nothing, and there may be very many.
        """
        item = self._items[index]
        return self._modules[item.module].finished(index, item.estimate_s, max(duration_s, SMALLEST_S))


class _Module:
    """The tests that are each other's neighbours."""

    __slots__ = (
        "_factor",
        "_known",
        "_long_s",
        "_ordered",
        "_probe",
        "_ratios",
        "_unknown",
        "_unmeasured",
        "_waiting",
        "results",
    )

    def __init__(self) -> None:
        self._known: list[float] = []
        """Estimates of its tests."""
        self._waiting: set[int] = set()
        self._unmeasured: set[int] = set()
        """Of those that need hosts and have not finished: all, and those without an estimate."""
        self.results: list[float] = []
        self._long_s, self._ordered = 0.0, 0
        """What nine of ten results took at most, and of how many that is known."""
        self._ratios: list[float] = []
        """Result over estimate."""
        self._factor = 1.0
        self._unknown: Estimate | None = None
        self._probe: tuple[float, int] = (math.inf, -1)

    @property
    def probe(self) -> int:
        return self._probe[1]

    def add(self, index: int, estimate_s: float | None, *, follows: bool) -> None:
        """Let it have a test.

        :param follows: whether it matters when the test is estimated otherwise.
        """
        if follows:
            self._waiting.add(index)
        rank_s = UNRANKED_S if estimate_s is None else estimate_s
        if rank_s < self._probe[0]:
            self._probe = rank_s, index
        self._unknown = None
        if estimate_s is not None:
            insort(self._known, estimate_s)
        elif follows:
            self._unmeasured.add(index)

    def long_s(self) -> float:
        """Return how long nine of ten results took at most, but for a few of the last ones."""
        count = len(self.results)
        if count >= self._ordered * MORE:
            self.results.sort()
            self._long_s, self._ordered = self.results[int(LONG_QUANTILE * count)], count
        return self._long_s

    def estimate(self, estimate_s: float | None, prior: Estimate) -> Estimate:
        if estimate_s is not None:
            corrected_s = estimate_s * self._factor
            return Estimate(corrected_s, corrected_s)
        if self._unknown is None:
            self._unknown = self._neighbourly(prior)
        return self._unknown

    def finished(self, index: int, estimate_s: float | None, duration_s: float) -> Collection[int]:
        self._waiting.discard(index)
        self._unmeasured.discard(index)
        self.results.append(duration_s)
        if estimate_s is not None:
            self._ratios.append(duration_s / max(estimate_s, SMALLEST_S))
        count = len(self.results)
        if count & (count - 1):  # Estimates hardly change between the 1st, 2nd, 4th, 8th ... result.
            return ()
        self._unknown = None
        before, self._factor = self._factor, self._correction()
        return self._unmeasured if self._factor == before else self._waiting

    def _correction(self) -> float:
        """By what its estimates have to be multiplied."""
        if not self._ratios:
            return 1.0
        self._ratios.sort()
        middle = math.log(self._ratios[len(self._ratios) // 2])
        return math.exp(middle) if abs(middle) > DOUBT else 1.0

    def _neighbourly(self, prior: Estimate) -> Estimate:
        """What to expect of a test without an estimate: at worst as long as its longest neighbour, and never short."""
        sample = [*(known * self._factor for known in self._known), *self.results]
        if not sample:
            return Estimate(prior.mean_s, prior.rank_s * (1 + CAUTION))
        mean_s = (sum(sample) + prior.mean_s) / (len(sample) + 1)
        longest_s = max(sample)
        if len(sample) < 4:
            longest_s = max(longest_s, prior.rank_s / (1 + len(sample)))
        return Estimate(mean_s, longest_s + CAUTION * prior.rank_s)
