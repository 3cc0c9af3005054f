"""Each signal to each part of a run in each phase: nothing of the run is left.

HAZARDS=all tests every cell of the matrix; otherwise it is a choice in which each pair of values occurs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import combinations, product

import pytest
from live_run import PHASES, LiveRun, live_run

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
TARGETS = ("controller", "group", "worker", "agent", "qemu")
DISTRIBUTIONS = {"plain": (), "xdist": ("-n", "2")}
ENDED_TIMEOUT_S = 90
AT_ONCE = 2


@dataclass(frozen=True)
class Cell:
    """The target, the signal, and the phase of the run."""

    signal_name: str
    target: str
    phase: str
    distribution: str

    def __str__(self) -> str:
        return f"{self.signal_name} → {self.target}, {self.phase}, {self.distribution}"

    @property
    def number(self) -> signal.Signals:
        return signal.Signals[self.signal_name]

    @property
    def is_possible(self) -> bool:
        """There are no workers without xdist, and there is no QEMU yet while something is downloaded."""
        return (self.target, self.distribution) != ("worker", "plain") and (self.target, self.phase) != (
            "qemu",
            "downloading",
        )

    @property
    def pairs(self) -> set[object]:
        return set(combinations(enumerate(astuple(self)), 2))

    @property
    def expected_status(self) -> int:
        if self.target in ("agent", "qemu"):
            return pytest.ExitCode.TESTS_FAILED
        if (self.target, self.number) == ("worker", signal.SIGTERM):  # It dies of it, and xdist replaces it.
            return pytest.ExitCode.TESTS_FAILED
        if self.number is not signal.SIGKILL:
            return pytest.ExitCode.INTERRUPTED
        return pytest.ExitCode.TESTS_FAILED if self.target == "worker" else -signal.SIGKILL

    @property
    def agent_is_killed(self) -> bool:
        return (self.target, self.number) == ("agent", signal.SIGKILL)


def every_cell() -> list[Cell]:
    names = [number.name for number in SIGNALS]
    cells = (Cell(*values) for values in product(names, TARGETS, PHASES, DISTRIBUTIONS))
    return [cell for cell in cells if cell.is_possible]


def covering(cells: list[Cell]) -> Iterator[Cell]:
    """Few cells, in which each pair of values occurs that occurs in all."""
    missing = set[object]().union(*(cell.pairs for cell in cells))
    while missing:
        best = max(cells, key=lambda cell: len(cell.pairs & missing))
        missing -= best.pairs
        yield best


CELLS = every_cell() if os.environ.get("HAZARDS") == "all" else list(covering(every_cell()))


def problem_of(cell: Cell) -> str | None:
    """Return the problem in a cell, or None."""
    with live_run(cell.phase, *DISTRIBUTIONS[cell.distribution]) as run:
        try:
            run.hit(cell.target, cell.number)
            require_end(run, cell)
            run.wait_until_clean()
        except (AssertionError, TimeoutError) as error:
            return f"{cell}: {error}\n{run.output}"
    return None


def require_end(run: LiveRun, cell: Cell) -> None:
    assert run.wait_ended(ENDED_TIMEOUT_S) == cell.expected_status
    if cell.expected_status == pytest.ExitCode.INTERRUPTED:
        assert re.search(r" in \d+\.\d\ds", run.output.splitlines()[-1]), "no summary"
        assert "KeyboardInterrupt" in run.output or "received keyboard-interrupt" in run.output
    if cell.agent_is_killed:
        run.wait_until(lambda: not [line for line in run.processes().values() if "qemu" in line])
        assert run.files(), "a dead agent cannot have removed its directory"
        assert "removed" in run.collect_garbage()


def failures(cells: Iterable[Cell]) -> list[str]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [problem for problem in pool.map(problem_of, cells) if problem]


def test_the_choice_has_every_pair_of_values() -> None:
    chosen, everything = (set[object]().union(*(cell.pairs for cell in cells)) for cells in (CELLS, every_cell()))
    assert chosen == everything


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_is_left_of_a_run_that_is_hit_while(phase: str) -> None:
    assert failures(cell for cell in CELLS if cell.phase == phase) == []
