"""A run whose VMs are served by programs of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from inner_run import InnerRun
from program_run import PROGRAM, SELECTION, program_run

TESTS = """
import pytest

@pytest.mark.requires(server="engine")
async def test_engine(test_vm): ...

@pytest.mark.requires(server="propolis")
async def test_propolis(test_vm):
    assert await test_vm.run("echo hello") == "hello"
"""


def test_a_selection_of_the_suite_passes_with_a_process_for_each_vm() -> None:
    done = program_run(SELECTION, timeout_s=900)
    assert done.status == 0, done.output[-4000:]
    assert done.skips
    assert done.unexpected_skips == []


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


def test_a_program_below_the_home_directory_is_found(
    inner: InnerRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server").symlink_to(Path(sys.executable).with_name(PROGRAM))
    monkeypatch.setenv("HOME", str(tmp_path))
    inner.write(test_it=TESTS)
    inner.run("--propolis-server", "~/server").assert_outcomes(passed=1, skipped=1)
    assert inner.leavings() == []


def test_a_path_that_is_no_program_is_an_error_before_anything_runs(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-server", "./no-server")
    result.stderr.fnmatch_lines(["ERROR: */no-server is not a program that can be run*"])
    assert result.ret == 4
