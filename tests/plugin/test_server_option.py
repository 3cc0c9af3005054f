"""A run whose VMs are served by programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from inner_run import InnerRun

ROOT = Path(__file__).parents[2]
PYTEST = (sys.executable, "-m", "pytest")
PROGRAM = "propolis-server-qemu"
SELECTION = (
    "tests/vm/test_states.py",
    "tests/vm/test_waits_that_cannot_end.py",
    "example_tests/test_boot.py",
    "example_tests/test_commands.py",
)

TESTS = """
import pytest

@pytest.mark.requires(server="engine")
async def test_engine(test_vm): ...

@pytest.mark.requires(server="propolis")
async def test_propolis(test_vm):
    assert await test_vm.run("echo hello") == "hello"
"""


def test_a_selection_of_the_suite_passes_with_a_process_for_each_vm() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [*PYTEST, "-q", "-rs", "-p", "no:cacheprovider", "--propolis-server", PROGRAM, *SELECTION],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skips
    assert all("it needs the engine" in line for line in skips), skips


def test_the_run_says_what_serves_its_vms_and_skips_what_that_cannot_do(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("-rs", "--propolis-server", PROGRAM)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            f"propolis: VMs are served by {PROGRAM}: all of them boot from cold",
            f"*it needs the engine, and VMs of this run are served by {PROGRAM}*",
        ]
    )
    assert inner.leavings() == []
    result = inner.run("-rs")
    result.stdout.fnmatch_lines(["*it needs a propolis-server*--propolis-server PATH, ARTIFACT or URL names one*"])


def test_a_path_that_is_no_program_is_an_error_before_anything_runs(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-server", "./no-server")
    result.stderr.fnmatch_lines(["ERROR: */no-server is no program that can be run*"])
    assert result.ret == 4
