"""Runs that share hosts take turns at them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from inner_run import InnerRun

pytestmark = pytest.mark.usefixtures("no_autoload")

HOLDING = """
import os, pytest

def test_it():
    open("running", "w").close()
    os.read(0, 1)
"""

COMMAND = (
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "propolis",
    "-s",
    "-p",
    "no:cacheprovider",
    "--propolis-leases",
    "leases",
)


@contextmanager
def run(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout
    return next(line for line in process.stdout if words in line)


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_a_run_waits_for_another_one_and_says_for_which(inner: InnerRun, ends: str) -> None:
    inner.write(test_it=HOLDING, test_other="def test_other(): pass\n")
    with run("test_it.py") as first:
        while not (inner.pytester.path / "running").exists():
            assert first.poll() is None
        with run("test_other.py", "--propolis-hosts", "local:2") as second:
            told = line_with(second, "waiting for host this-machine: the run of ")
            assert f"in {Path.cwd()} (pid {first.pid}), which has it since " in told
            if ends == "killed":
                os.kill(first.pid, signal.SIGKILL)
            else:
                assert first.stdin
                first.stdin.write("\n")
                first.stdin.flush()
            line_with(second, "host this-machine is free now")
            line_with(second, "1 passed")
            assert second.wait(60) == 0


def test_runs_in_turn_leave_no_lease_taken(inner: InnerRun) -> None:
    inner.write(test_it="def test_it(): pass\n")
    for arguments in ((), ("-n", "1")):
        result = inner.run("--propolis-leases", "leases", *arguments)
        result.assert_outcomes(passed=1)
        assert "waiting for host" not in result.stdout.str()
    assert [path.name for path in (inner.pytester.path / "leases").iterdir()] == ["this-machine.lock"]


def test_a_directory_that_cannot_be_made_ends_the_run(inner: InnerRun) -> None:
    inner.write(test_it="def test_it(): pass\n")
    result = inner.run("--propolis-leases", "/proc/leases")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--propolis-leases /proc/leases: No such file or directory*"])
