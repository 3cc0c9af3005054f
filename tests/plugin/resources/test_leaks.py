"""Leaked resources fail a run; kept ones do not."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from leaking_test import LEAKS_A_PROCESS
from propolis_command import propolis

from pytest_propolis.ledger.identity import ProcessIdentity

LEAK_FILE = """
async def test_it(vm_factory, propolis):
    await vm_factory.create()
    agent = propolis.host.directory
    agent.parent.joinpath(f"{agent.name.partition('-')[0]}-forgotten").mkdir(mode=0o700)
"""

CHILD_THAT_STAYS = """
import os

async def test_it(vm_factory):
    await vm_factory.create()
    ends_with_parent, held_by_parent = os.pipe()
    if os.fork() == 0:
        os.close(held_by_parent)
        os.read(ends_with_parent, 1)
        os._exit(0)
"""


@contextlib.contextmanager
def ended(note: Path) -> Iterator[str]:
    """The process that a test has written down, which is killed in the end."""
    process = ProcessIdentity.of(int(note.read_text()))
    try:
        yield str(process.pid)
    finally:
        process.kill()
        assert process.wait_gone(10)


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_process_that_was_forgotten_fails_the_run_and_is_listed(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    note = inner.pytester.path / "stray"
    monkeypatch.setenv("STRAY", str(note))
    inner.write(test_it=LEAKS_A_PROCESS)
    result = inner.run(*workers)
    with ended(note) as pid:
        result.assert_outcomes(passed=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*this run has left something behind*", f"process {pid} (*time.sleep(600)*)"])


def test_a_directory_that_was_forgotten_fails_the_run_and_is_listed(inner: InnerRun) -> None:
    inner.write(test_it=LEAK_FILE)
    result = inner.run()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (place,) = re.findall(r"^directory (\S+-forgotten)", result.stdout.str(), re.MULTILINE)
    assert [place] == inner.leavings()
    inner.runtime.joinpath(place).rmdir()


def test_what_is_kept_is_no_leak(inner: InnerRun) -> None:
    inner.write(test_it="async def test_it(vm_factory):\n    await (await vm_factory.create()).launch()\n")
    result = inner.run("--propolis-keep=always")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*left something behind*")
    assert "removed VM" in propolis("gc", "--kept")


def test_what_is_leaked_beside_what_is_kept_is_a_leak(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    note = inner.pytester.path / "stray"
    monkeypatch.setenv("STRAY", str(note))
    inner.write(test_it=LEAKS_A_PROCESS)
    result = inner.run("--propolis-keep=always")
    with ended(note) as pid:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        leaks = re.findall(r"^(process|file|directory|socket|entry) (.*)", result.stdout.str(), re.MULTILINE)
        assert [(kind, what.split()[0]) for kind, what in leaks] == [("process", pid)]
    propolis("gc", "--kept")


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_forked_child_that_outlives_the_tests_leaks_nothing(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(test_it=CHILD_THAT_STAYS)
    result = inner.run(*workers)
    deadline = time.monotonic() + 10
    while any(inner.processes()) and time.monotonic() < deadline:
        pass  # the child ends when it sees the end of its parent
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*left something behind*")
