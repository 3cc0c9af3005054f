"""The cost of placement in xdist's controller, and whole runs with our scheduler against xdist's ``load``.

The controller's processor time is its own, without its workers': whatever else the machine does hardly changes it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.pytest_runs import run_suite
from ..common.samples import spread

__all__ = ["measure"]

TRIVIAL: Final = 10_000
WARM: Final = 100
ROUNDS: Final = 3
TIMEOUT_S: Final = 900.0
WITHOUT: Final = ("-p", "no:propolis")

TRIVIAL_SUITE: Final = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_nothing(number):
    pass
"""

WARM_SUITE: Final = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
async def test_of_its_own(test_vm, number):
    assert await test_vm.run(f"echo {{number}}") == str(number)
"""

CONTROLLER: Final = """
import sys, time
import pytest

code = pytest.main(sys.argv[1:])
print()
print(time.process_time())
sys.exit(code)
"""


def measure(options: Options) -> list[Figure]:
    return [*_controller(options), _warm(options)]


def _controller(options: Options) -> list[Figure]:
    """Measure the controller's processor time over whole runs of trivial tests."""
    variants = {
        "alone": WITHOUT,
        "nothing asked": ("-p", "propolis"),
        "placed": ("-p", "propolis", "--propolis-hosts", "local:8"),
    }
    few = ("-n", "2", "-k", "test_nothing[0]")
    cpu_s: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory(prefix="propolis-benchmark-") as name:
        directory = Path(name)
        (directory / "test_suite.py").write_text(TRIVIAL_SUITE.format(tests=TRIVIAL))
        for arguments in variants.values():
            _run(directory, (*few, *arguments))  # compiles the modules
        for number in range(options.repeated(ROUNDS)):
            # Whichever comes second finds warmer caches: they take turns.
            order = list(variants.items())
            for variant, arguments in order if number % 2 else reversed(order):
                cpu_s[variant].append(_run(directory, ("-n", "8", *arguments))[1])
                say(f"{variant}: {cpu_s[variant][-1]:.2f} s of the controller's processor time")
    what = f"{TRIVIAL} trivial tests over 8 workers, the controller's processor time"
    return [
        _figure(f"{what}, no hosts asked for", cpu_s["nothing asked"], cpu_s["alone"], 1.05),
        _figure(f"{what}, with --propolis-hosts", cpu_s["placed"], cpu_s["alone"], 1.10),
    ]


def _warm(options: Options) -> Figure:
    """Measure whole runs of tests with a VM each, whose template exists."""
    hosts = (
        "-n",
        "2",
        "-p",
        "propolis",
        "--propolis-hosts",
        "local:1",
        f"--propolis-accelerator={options.accelerator}",
    )
    variants = {"ours": hosts, "load": (*hosts, "--dist", "load")}
    wall_s: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory(prefix="propolis-benchmark-") as name:
        directory = Path(name)
        (directory / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
        (directory / "test_suite.py").write_text(WARM_SUITE.format(tests=WARM))
        _run(directory, (*hosts, "-k", "test_of_its_own[0]"))  # makes the template
        for number in range(options.repeated(ROUNDS)):
            order = list(variants.items())
            for variant, arguments in order if number % 2 else reversed(order):
                wall_s[variant].append(_run(directory, arguments)[0])
                say(f"{variant}: {wall_s[variant][-1]:.2f} s")
    return _figure(f"{WARM} warm tests, -n 2, one host: against --dist load", wall_s["ours"], wall_s["load"], 1.0)


def _figure(name: str, ours: Sequence[float], floor: Sequence[float], bound: float) -> Figure:
    ratio = median(mine / other for mine, other in zip(ours, floor, strict=True))
    return Figure(
        name=f"{name}, n={len(ours)}",
        measured=spread(ours),
        floor=spread(floor),
        ratio=f"{ratio:.3f} (median of the pairs)",
        bound=f"<= {bound:.2f}",
        met=ratio <= bound,
    )


def _run(directory: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Run the suite, and return the seconds that it took and the controller's processor time.

    Other plugins that are installed make no difference.
    """
    command = [sys.executable, "-c", CONTROLLER, "-p", "xdist", *arguments]
    took_s, output = run_suite(command, directory, added={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    return took_s, float(output.splitlines()[-1])
