"""Discovery: ``pytest --collect-only -q`` of 1,000 tests with the plugin, without it, and with its fixtures alone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread

__all__ = ["measure"]

BOUND: Final = 1.03
PAIRS: Final = 15
FILES: Final = 20
TESTS_PER_FILE: Final = 50

WITH: Final = ("-p", "propolis")
WITHOUT: Final = ("-p", "no:propolis")
FIXTURES_ALONE: Final = ("-p", "no:propolis", "-p", "fixtures_alone")

FIXTURES: Final = """
import pytest
import pytest_asyncio

@pytest.fixture(scope="session")
def propolis(request, tmp_path_factory): ...

@pytest_asyncio.fixture
async def _propolis_metrics(request, propolis): ...

@pytest_asyncio.fixture
async def vm_factory(request, propolis, _propolis_metrics): ...

@pytest_asyncio.fixture
async def test_vm(vm_factory): ...
"""
"""A plugin that defines what the tests use and does nothing: what pytest itself does with such fixtures."""


class Took(NamedTuple):
    """The wall-clock time and processor time of a process."""

    wall_s: float
    cpu_s: float


def measure(options: Options) -> list[Figure]:
    pairs = options.repeated(PAIRS)
    with_plugin: list[Took] = []
    without: list[Took] = []
    fixtures_alone: list[Took] = []
    with tempfile.TemporaryDirectory(prefix="propolis-benchmark-") as name:
        directory = Path(name)
        _write_tests(directory)
        for arguments in (WITH, WITHOUT, FIXTURES_ALONE):
            _collect(directory, arguments)  # compiles what is not compiled yet
        say(f"collect: {pairs} times each")
        for number in range(pairs):
            # Whichever comes second finds warmer caches: they take turns.
            order = ((WITH, with_plugin), (WITHOUT, without), (FIXTURES_ALONE, fixtures_alone))
            for arguments, took in order if number % 2 else reversed(order):
                took.append(_collect(directory, arguments))
    return [
        _figure(f"collect {FILES * TESTS_PER_FILE} tests, n={pairs}", with_plugin, without, "wall_s", bound=BOUND),
        _figure("the same in processor time", with_plugin, without, "cpu_s"),
        _figure("the same against the fixtures alone, in processor time", with_plugin, fixtures_alone, "cpu_s"),
        _figure("the fixtures alone, in processor time", fixtures_alone, without, "cpu_s"),
    ]


def _figure(name: str, ours: list[Took], floor: list[Took], what: str, *, bound: float | None = None) -> Figure:
    mine, other = ([getattr(took, what) for took in each] for each in (ours, floor))
    ratio = ratio_of_medians(mine, other)
    paired = median(a / b for a, b in zip(mine, other, strict=True))
    return Figure(
        name=name,
        measured=spread(mine),
        floor=spread(other),
        ratio=f"{ratio:.3f} (pairs {paired:.3f})",
        bound=f"<= {bound:.2f} x" if bound else "",
        met=ratio <= bound if bound else None,
    )


def _write_tests(directory: Path) -> None:
    """Asynchronous tests; every other one uses a fixture of the plugin's."""
    (directory / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    (directory / "fixtures_alone.py").write_text(FIXTURES)
    for number in range(FILES):
        tests = (
            f"async def test_{index}({'test_vm' if index % 2 else ''}):\n    assert {index} >= 0\n\n\n"
            for index in range(TESTS_PER_FILE)
        )
        (directory / f"test_file_{number}.py").write_text("".join(tests))


def _collect(directory: Path, arguments: tuple[str, ...]) -> Took:
    began_cpu = _children_cpu_s()
    began = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        check=True,
        capture_output=True,
        text=True,
    )
    took = Took(time.perf_counter() - began, _children_cpu_s() - began_cpu)
    if f"{FILES * TESTS_PER_FILE} tests collected" not in finished.stdout:
        raise RuntimeError(f"not all tests were collected: {finished.stdout[-500:]}")
    return took


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
