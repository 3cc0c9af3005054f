"""Options of pytest and of other plugins that choose, stop or repeat tests, with the scheduler of this plugin."""

from __future__ import annotations

import os

import pytest
import xdist.plugin
from inner_run import InnerRun

from pytest_propolis.hosts.inventory.capacity import slots_of, vms_by_memory
from pytest_propolis.hosts.inventory.inventory import read_inventory
from pytest_propolis.operating_system.figures import total_mib
from pytest_propolis.settings import Settings

PLACED = ("--propolis-hosts", "local:2", "-n", "2")

FLAKY = """
import pathlib, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    assert number not in (2, 4) or pathlib.Path("repaired").exists()
"""

FAILING = """
import pytest

@pytest.mark.parametrize("number", range(300))
def test_it(number):
    assert False
"""

LIMITED = """
import pytest

@pytest.hookimpl(hookwrapper=True)
def pytest_xdist_auto_num_workers(config):
    outcome = yield
    outcome.force_result(min(outcome.get_result(), 1))
"""

TWICE = """
import pathlib

def test_it():
    first = pathlib.Path("first")
    if not first.exists():
        first.touch()
        assert False

def test_other():
    pass
"""

CRASHING_ONCE = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(6))
async def test_it(vm_factory, number):
    crashed = pathlib.Path("crashed")
    if number == 5 and not crashed.exists():
        crashed.touch()
        os._exit(1)
"""


def test_only_the_tests_that_failed_last_run_again(inner: InnerRun) -> None:
    inner.write(test_it=FLAKY)
    inner.run(*PLACED).assert_outcomes(passed=4, failed=2)
    inner.run(*PLACED, "--lf").assert_outcomes(failed=2)
    (inner.pytester.path / "repaired").touch()
    inner.run(*PLACED, "--lf").assert_outcomes(passed=2)


def test_stepwise_stops_at_a_failure_and_goes_on_with_it(inner: InnerRun) -> None:
    inner.write(test_it=FLAKY)
    result = inner.run(*PLACED, "--sw")
    assert result.parseoutcomes()["failed"] >= 1
    (inner.pytester.path / "repaired").touch()
    outcomes = inner.run(*PLACED, "--sw").parseoutcomes()
    assert "failed" not in outcomes
    assert outcomes["passed"] >= 1


def test_a_run_stops_after_so_many_failures(inner: InnerRun) -> None:
    inner.write(test_it=FAILING)
    result = inner.run(*PLACED, "--maxfail", "3")
    assert 3 <= result.parseoutcomes()["failed"] < 300
    result.stdout.fnmatch_lines(["*stopping after 3 failures*"])


def test_no_more_workers_start_than_the_user_allows(inner: InnerRun) -> None:
    inner.write(test_it=FLAKY)
    (inner.pytester.path / "repaired").touch()
    result = inner.run("--propolis-hosts", "local:4", "-n", "auto", "--maxprocesses", "2", "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*created: 2/2 workers*"])


def test_the_number_of_workers_in_the_environment_is_the_users_choice(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner.write(test_it=FLAKY)
    (inner.pytester.path / "repaired").touch()
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")
    result = inner.run("--propolis-hosts", "local:4", "-n", "auto", "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*created: 1/1 worker*"])


@pytest.mark.parametrize("number", [1, None])
@pytest.mark.parametrize("hosts", [("--propolis-hosts", "local:2"), ()], ids=["hosts", "this machine"])
def test_a_hook_that_gives_the_number_of_workers_is_the_users_choice(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], number: int | None
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    inner.write(test_it=FLAKY, conftest=f"def pytest_xdist_auto_num_workers(config):\n    return {number}\n")
    (inner.pytester.path / "repaired").touch()
    specs = read_inventory("local:2")
    slots = sum(slots_of(spec, specs) for spec in specs)
    wanted = number or (slots if hosts else len(os.sched_getaffinity(0)))
    result = inner.run(*hosts, "-n", "auto", "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines([f"*created: {wanted}/{wanted} worker*"])


@pytest.mark.parametrize("hosts", [("--propolis-hosts", "local:2"), ()], ids=["hosts", "this machine"])
def test_a_hook_that_wraps_others_limits_the_number_of_workers(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...]
) -> None:
    """As that of VS Code's adapter does."""
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    inner.write(test_it=FLAKY, conftest=LIMITED)
    (inner.pytester.path / "repaired").touch()
    result = inner.run(*hosts, "-n", "auto", "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*created: 1/1 worker*"])


def test_so_many_workers_start_that_their_vms_fit_into_memory(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    inner.write(test_it=FLAKY)
    (inner.pytester.path / "repaired").touch()
    result = inner.run("-n", "auto", "-v", "--propolis-memory-mib", str(total_mib()))
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*created: 1/1 worker*"])


@pytest.mark.parametrize(
    ("arguments", "one_per_processor"),
    [([], True), (["-p", "propolis"], False), (["--propolis-memory-mib", "1048576"], False)],
)
def test_where_nothing_is_set_the_number_of_workers_is_that_of_xdist(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, arguments: list[str], one_per_processor: bool
) -> None:
    """A project without VMs has as many workers as without this plugin, however little memory there is."""
    for name in [
        name for name in os.environ if name.startswith("PROPOLIS_") or name == "PYTEST_XDIST_AUTO_NUM_WORKERS"
    ]:
        monkeypatch.delenv(name)
    processors = range(vms_by_memory(Settings().memory_mib) + 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(processors))
    config = inner.pytester.parseconfigure("-n", "auto", *arguments)
    xdist.plugin.pytest_cmdline_main(config)
    assert (config.getoption("numprocesses") == len(processors)) == one_per_processor


def test_a_test_that_failed_runs_again_in_its_worker(inner: InnerRun) -> None:
    pytest.importorskip("pytest_rerunfailures")
    inner.write(test_it=TWICE)
    result = inner.run("-prerunfailures", *PLACED, "--reruns", "1")
    assert result.parseoutcomes() == {"passed": 2, "rerun": 1}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_test_that_its_worker_crashed_in_runs_again_in_another_one(inner: InnerRun, workers: str) -> None:
    pytest.importorskip("pytest_rerunfailures")
    inner.write(test_it=CRASHING_ONCE)
    result = inner.run("-prerunfailures", "--propolis-hosts", "local:2", "-n", workers, "--reruns", "1")
    assert result.parseoutcomes() == {"passed": 6, "rerun": 1}
    assert inner.leavings() == []
