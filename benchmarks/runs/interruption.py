"""The time from Ctrl-C to pytest's exit."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import spread

__all__ = ["measure"]

INTERRUPTED: Final = 2
RUN_TIMEOUT_S: Final = 120.0
REPEATS: Final = 5

PLUGINS: Final = ("-ppropolis", "-pasyncio", "-pxdist", "-pno:cacheprovider")
"""No others: that of Hypothesis imports all of it at the end of an interrupted run, and takes longer than the rest."""

READY: Final = """
import os

def ready():
    with open(os.environ["READY"], "w") as fifo:
        fifo.write("ready")
"""

BOOTING: Final = """
async def test_booting(vm_factory):
    vm = await vm_factory.create("vm", guest="micro")
    await vm.launch()
    ready()
    await vm.wait_to_boot()
"""

WAITING: Final = """
async def test_waiting(vm_factory):
    vm = await vm_factory.start("vm", guest="micro")
    ready()
    await vm.wait_for_serial_output("this never comes", timeout_s=600)
"""

MANY: Final = """
async def test_many(vm_factory):
    vms = [await vm_factory.start(f"vm-{number}", guest="micro") for number in range(8)]
    ready()
    await vms[0].wait_for_serial_output("this never comes", timeout_s=600)
"""


@dataclass(frozen=True)
class Case:
    """The activity of a run when it is interrupted, and its time limit in seconds."""

    name: str
    test: str
    bound_s: float
    arguments: tuple[str, ...] = ()


CASES: Final = (
    Case("one VM booting", BOOTING, 3.0),
    Case("one VM in wait_for_serial_output", WAITING, 3.0),
    Case("the same, -n 2", WAITING, 3.0, ("-n", "2")),
    Case("8 VMs up", MANY, 10.0),
    Case("the same, -n 2", MANY, 10.0, ("-n", "2")),
)


def measure(options: Options) -> list[Figure]:
    return [_figure(case, [_once(case, options) for _ in range(options.repeated(REPEATS))]) for case in CASES]


def _figure(case: Case, samples_s: Sequence[float]) -> Figure:
    return Figure(
        name=f"Ctrl-C to pytest's end: {case.name}, n={len(samples_s)}",
        measured=spread(samples_s),
        bound=f"<= {case.bound_s:.0f} s",
        met=max(samples_s) <= case.bound_s,
    )


def _once(case: Case, options: Options) -> float:
    """Return the seconds from a signal to the process group, as a terminal sends it, to pytest's exit."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.mkfifo(place / "ready")
        (place / "test_victim.py").write_text(READY + case.test)
        output = place / "output"
        with output.open("wb") as file:
            run = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "-q", *PLUGINS, *case.arguments),
                    *(f"--propolis-accelerator={options.accelerator}", "test_victim.py"),
                ],
                cwd=place,
                env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "READY": str(place / "ready")},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        try:
            return _interrupted(run, place / "ready", output, case)
        finally:
            run.kill()
            run.wait()


def _wait_for_writer(ready: Path, run: subprocess.Popen[bytes], output: Path) -> None:
    fifo, ended = os.open(ready, os.O_RDONLY | os.O_NONBLOCK), os.pidfd_open(run.pid)
    try:
        first, _, _ = select.select([fifo, ended], [], [], RUN_TIMEOUT_S)
    finally:
        os.close(fifo)
        os.close(ended)
    if first != [fifo]:
        raise RuntimeError(f"the run did not get to where it was to be interrupted: {output.read_text()}")


def _interrupted(run: subprocess.Popen[bytes], ready: Path, output: Path, case: Case) -> float:
    _wait_for_writer(ready, run, output)
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    status = run.wait(RUN_TIMEOUT_S)
    took_s = time.monotonic() - began
    if status != INTERRUPTED:
        raise RuntimeError(f"{case.name} ended with {status}: {output.read_text()}")
    say(f"{case.name} {' '.join(case.arguments)}: {took_s:.2f} s, load {os.getloadavg()[0]:.1f}")
    return took_s
