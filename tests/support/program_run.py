"""Run tests of this project with a server process for each VM, which must not matter to them.

``.venv/bin/python tests/support/program_run.py [--server PROGRAM] [PYTEST ARGUMENT...]``

A test may be skipped because it needs the engine. Any other skip fails the run, apart from those of `EXPECTED_SKIPS`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import pytest

__all__ = ["PROGRAM", "SELECTION", "WHOLE", "ProgramRun", "program_run"]

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = "propolis-server-qemu"

SELECTION: Final = (
    "tests/vm/lifecycle/test_states.py",
    "example_tests/test_boot.py",
    "example_tests/test_commands.py",
)
"""What continuous integration runs."""

WHOLE: Final = (
    "tests/vm",
    "tests/contract/test_engine_contract.py",
    "tests/console/test_serial_console.py",
    "example_tests",
)
"""The examples, and the cases of states, consoles and migrations, and PHD's.

Tests in `tests/engine` name their servers themselves, and run with programs in every run.
"""

VM_FIXTURES: Final = frozenset({"propolis", "vm_factory", "test_vm"})

NEEDS_THE_ENGINE: Final = re.compile(r"it needs the engine, and VMs of this run are served by")
EXPECTED_SKIPS: Final = re.compile(
    r"not installed|which is not there|\bpackage\b|loses pages of a guest|there is no /dev/|is not built"
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests without VMs, for which the server does not matter; this module is a plugin of the run."""
    indifferent = [item for item in items if not VM_FIXTURES.intersection(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=indifferent)
    items[:] = [item for item in items if item not in indifferent]


class ProgramRun:
    """A run that has ended.

    :param output: what pytest printed.
    """

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output

    @property
    def skips(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("SKIPPED")]

    @property
    def unexpected_skips(self) -> list[str]:
        return [line for line in self.skips if not any(p.search(line) for p in (NEEDS_THE_ENGINE, EXPECTED_SKIPS))]


def program_run(
    tests: Iterable[str],
    *,
    server: str = PROGRAM,
    arguments: Sequence[str] = (),
    timeout_s: float = threading.TIMEOUT_MAX,
    show: Callable[[str], object] | None = None,
) -> ProgramRun:
    """Run tests with a server program, on three hosts of this machine; pass each line of output to `show` at once."""
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", Path(__file__).stem),
        *("--propolis-server", server, "--propolis-hosts", "local:3"),
        *arguments,
        *tests,
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(timeout_s, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        return _follow(process, show or (lambda _: None))
    finally:
        watchdog.cancel()
        process.kill()


def _follow(process: subprocess.Popen[str], show: Callable[[str], object]) -> ProgramRun:
    """Read the output to its end."""
    lines: list[str] = []
    with process:
        for line in process.stdout or ():
            lines.append(line)
            show(line)
    return ProgramRun(process.returncode, "".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests with a server program for each VM.")
    parser.add_argument("--server", default=PROGRAM, help="default: %(default)s")
    options, arguments = parser.parse_known_args()
    done = program_run(WHOLE, server=options.server, arguments=["-m", "", *arguments], show=_print)
    for skip in done.unexpected_skips:
        print("skipped for another reason than the server:", skip)
    return done.status or bool(done.unexpected_skips)


def _print(line: str) -> None:
    print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
