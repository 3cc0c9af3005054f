"""A whole run of pytest with a VM for each test, in time and in processor time of all that takes part."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from .figure import Figure
from .options import Options, say
from .samples import spread

__all__ = ["measure"]

TESTS: Final = 100
BOUND_S: Final = 12.0
RUNS: Final = 3
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


def measure(options: Options) -> list[Figure]:
    guest = "alpine" if options.alpine else "micro"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _adopt_orphans()
        _run(directory, guest, options, tests=1)  # makes the template, if there is none
        runs = [_run(directory, guest, options, tests=TESTS) for _ in range(options.repeated(RUNS))]
    wall_s, cpu_s = [list(column) for column in zip(*runs, strict=True)]
    return [
        Figure(
            name=f"{TESTS} tests, each with a fresh VM ({guest}) and three commands, -n 2, n={len(runs)}",
            measured=spread(wall_s),
            bound=f"<= {BOUND_S:.0f} s",
            met=min(wall_s) <= BOUND_S,
        ),
        Figure(name="the same, processor time of everything", measured=spread(cpu_s)),
    ]


def _run(directory: Path, guest: str, options: Options, *, tests: int) -> tuple[float, float]:
    """Seconds on the clock, and of processor time of pytest, its workers, the agent and all QEMUs."""
    (directory / "test_suite.py").write_text(SUITE.format(tests=tests))
    ours = (f"--propolis-guest={guest}", f"--propolis-accelerator={options.accelerator}")
    before_s, began = _spent_s(), time.monotonic()
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *ours, "test_suite.py"],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    wall_s = time.monotonic() - began
    if finished.returncode:
        raise RuntimeError(finished.stdout)
    _wait_for_all()
    say(f"{tests} tests: {wall_s:.2f} s, {_spent_s() - before_s:.2f} s of processors, load {os.getloadavg()[0]:.1f}")
    return wall_s, _spent_s() - before_s


def _adopt_orphans() -> None:
    """The agent is nobody's child: have it become this process's, so that its time is counted here when it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")


def _wait_for_all() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _spent_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
