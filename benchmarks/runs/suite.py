"""A whole run of pytest with a VM for each test: wall-clock time, and processor time of all processes.

The floor is the same VMs by hand, two at a time, and pytest with as many tests that do nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread
from ..floors.bare_fork import BareFork, place_of_template

__all__ = ["measure"]

TESTS: Final = 100
BOUND_S: Final = 12.0
RUNS: Final = 3
AT_ONCE: Final = 2
RUN_TIMEOUT_S: Final = 300.0
PR_SET_CHILD_SUBREAPER: Final = 36

SUITE: Final = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
async def test_of_its_own(test_vm, number):
    assert await test_vm.run("cat /tmp/mine 2>/dev/null || echo none") == "none"
    await test_vm.run(f"echo {{number}} > /tmp/mine")
    assert await test_vm.run("cat /tmp/mine") == str(number)
"""


IDLE_SUITE: Final = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_nothing(number):
    pass
"""
WITHOUT_US: Final = ("-p", "no:propolis", "-p", "no:asyncio")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of wall-clock time, and of processor time of all processes."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: Self) -> Spent:
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


def measure(options: Options) -> list[Figure]:
    guest = "alpine" if options.alpine else "micro"
    _adopt_orphans()
    place = asyncio.run(_place(guest, options))
    ours: list[Spent] = []
    by_hand: list[Spent] = []
    idle: list[Spent] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for _ in range(options.repeated(RUNS)):
            ours.append(_taken("ours", lambda: _run(directory, SUITE, _arguments(guest, options))))
            by_hand.append(_taken("by hand", lambda: _fork_by_hand(place, directory)))
            idle.append(_taken("pytest alone", lambda: _run(directory, IDLE_SUITE, WITHOUT_US)))
    floor = [one + other for one, other in zip(by_hand, idle, strict=True)]
    return [*_figures(guest, ours, floor), _explained("the VMs by hand", by_hand), _explained("pytest alone", idle)]


def _figures(guest: str, ours: Sequence[Spent], floor: Sequence[Spent]) -> list[Figure]:
    wall_s, cpu_s = [one.wall_s for one in ours], [one.cpu_s for one in ours]
    floor_wall_s, floor_cpu_s = [one.wall_s for one in floor], [one.cpu_s for one in floor]
    return [
        Figure(
            name=f"{TESTS} tests, each with a fresh VM ({guest}) and three commands, -n {AT_ONCE}, n={len(ours)}",
            measured=spread(wall_s),
            floor=spread(floor_wall_s),
            ratio=f"{ratio_of_medians(wall_s, floor_wall_s):.2f}",
            bound=f"<= {BOUND_S:.0f} s",
            met=min(wall_s) <= BOUND_S,
        ),
        Figure(
            name="the same, processor time of everything",
            measured=spread(cpu_s),
            floor=spread(floor_cpu_s),
            ratio=f"{ratio_of_medians(cpu_s, floor_cpu_s):.2f}",
        ),
    ]


def _explained(name: str, spent: Sequence[Spent]) -> Figure:
    wall, cpu = spread([one.wall_s for one in spent]), spread([one.cpu_s for one in spent])
    return Figure(name=f"of its floor: {name}", floor=f"{wall}, of processors {cpu}")


async def _place(guest: str, options: Options) -> Path:
    async with Harness.open(options) as harness:
        return await place_of_template(harness, guest)


def _taken(what: str, work: Callable[[], None]) -> Spent:
    """Measure a piece of work, including processes that it leaves behind, which are waited for."""
    before_s, began = _spent_s(), time.monotonic()
    work()
    wall_s = time.monotonic() - began
    _wait_for_all()
    spent = Spent(wall_s, _spent_s() - before_s)
    say(f"{what}: {spent.wall_s:.2f} s, {spent.cpu_s:.2f} s of processors, load {os.getloadavg()[0]:.1f}")
    return spent


def _arguments(guest: str, options: Options) -> tuple[str, ...]:
    return (f"--propolis-guest={guest}", f"--propolis-accelerator={options.accelerator}")


def _run(directory: Path, suite: str, arguments: Sequence[str]) -> None:
    (directory / "test_suite.py").write_text(suite.format(tests=TESTS))
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(AT_ONCE), "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [*command, *arguments, "test_suite.py"],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    if finished.returncode:
        raise RuntimeError(finished.stdout)


def _fork_by_hand(place: Path, directory: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda number: _test_by_hand(place, directory, number), range(TESTS)))


def _test_by_hand(place: Path, directory: Path, number: int) -> None:
    with BareFork(place, directory) as fork:
        fork.restore()
        fork.run_on()
        fork.assign_identity("bare")
        fork.run("cat /tmp/mine 2>/dev/null || echo none")
        fork.run(f"echo {number} > /tmp/mine")
        fork.run("cat /tmp/mine")


def _adopt_orphans() -> None:
    """Adopt the agent, which no parent waits for, so that its time is counted here when it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")


def _wait_for_all() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _spent_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
