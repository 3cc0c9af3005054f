"""Tests spread over the hosts of an inventory by pytest-xdist's workers."""

from __future__ import annotations

import json

import pytest
from inner_run import InnerRun

MANY = """
import pytest

@pytest.mark.parametrize("number", range(6))
async def test_one_host(test_vm, propolis, number):
    assert test_vm.host is propolis.placed[0]
    assert len(propolis.placed) == 1
    assert await test_vm.run("echo up") == "up"

@pytest.mark.multi_node(2)
@pytest.mark.parametrize("number", range(2))
async def test_two_hosts(vm_factory, remote_hosts, propolis, number):
    left, right = remote_hosts
    assert {left.name, right.name} == {host.name for host in propolis.placed}
    await vm_factory.create("left", host=left)
    await vm_factory.create("right", host=right)

async def test_another_host(test_vm, remote_host):
    assert remote_host.name != test_vm.host.name

def test_without_a_vm():
    pass
"""

CRASHING = """
import os

async def test_crashes(test_vm):
    os._exit(1)

async def test_lives(test_vm):
    assert await test_vm.run("echo up") == "up"

def test_other():
    pass
"""

WATCHING = """
import sys

import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    if "pytest_propolis.vm.factory" in sys.modules:
        item.user_properties.append(("prepared", True))

def pytest_terminal_summary(terminalreporter):
    reports = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    prepared = sum(("prepared", True) in report.user_properties for report in reports)
    makes = "pytest_propolis.distribution.template_preparer" in sys.modules
    terminalreporter.write_line(f"{prepared} began with all imported, the controller makes templates: {makes}")
"""

LABELLED = """
[hosts.plain]
kind = "local"
slots = 1

[hosts.special]
kind = "local"
slots = 1
labels = ["special"]
"""


@pytest.mark.parametrize(
    ("tests", "line"),
    [
        ("async def test_it(test_vm): ...\n", "1 began with all imported, the controller makes templates: False"),
        (
            "async def test_it(test_vm): ...\ndef test_other(): ...\n",
            "2 began with all imported, the controller makes templates: True",
        ),
        ("def test_other(): ...\n", "0 began with all imported, the controller makes templates: False"),
    ],
    ids=["only VMs", "VMs and others", "only others"],
)
def test_tests_wait_for_the_controller_only_where_others_can_run_meanwhile(
    inner: InnerRun, tests: str, line: str
) -> None:
    inner.write(conftest=WATCHING, test_it=tests)
    inner.run("--propolis-hosts", "local:1", "-n", "1").stdout.fnmatch_lines([line])


@pytest.mark.parametrize("workers", [pytest.param("2", marks=pytest.mark.slow), "auto"])
def test_each_test_gets_the_hosts_that_it_needs(inner: InnerRun, workers: str) -> None:
    inner.write(test_it=MANY)
    inner.run("--propolis-hosts", "local:3", "-n", workers).assert_outcomes(passed=10)
    assert inner.leavings() == []


def test_more_hosts_than_slots_deadlock_nothing(inner: InnerRun) -> None:
    inner.write(test_it=MANY)
    (inner.pytester.path / "hosts.toml").write_text(LABELLED)
    inner.run("--propolis-hosts", "hosts.toml", "-n", "4").assert_outcomes(passed=10)


def test_a_label_is_met_by_the_host_that_has_it(inner: InnerRun) -> None:
    inner.write(
        test_it="import pytest\n"
        "@pytest.mark.requires(labels=['special'])\n"
        "@pytest.mark.parametrize('number', range(3))\n"
        "async def test_it(vm_factory, propolis, number):\n"
        "    assert [host.name for host in propolis.placed] == ['special']\n"
    )
    (inner.pytester.path / "hosts.toml").write_text(LABELLED)
    inner.run("--propolis-hosts", "hosts.toml", "-n", "2").assert_outcomes(passed=3)


def test_a_worker_that_crashes_within_a_batch_loses_the_test_that_it_runs_alone(inner: InnerRun) -> None:
    inner.write(
        test_it="import os, pytest\n"
        "@pytest.mark.parametrize('number', range(200))\n"
        "def test_it(number):\n"
        "    number != 60 or os._exit(1)\n"
    )
    result = inner.run("--propolis-hosts", "local:2", "-n", "2")
    result.assert_outcomes(passed=199, failed=1)
    result.stdout.fnmatch_lines(["*crashed while running*test_it?60?*"])


def test_workers_that_collect_different_tests_run_none(inner: InnerRun) -> None:
    inner.write(
        test_it="import os, pytest\n"
        "NUMBERS = sorted(range(10), reverse=os.environ['PYTEST_XDIST_WORKER'] == 'gw0')\n"
        "@pytest.mark.parametrize('number', NUMBERS)\n"
        "def test_it(number):\n    pass\n"
    )
    result = inner.run("--propolis-hosts", "local:2", "-n", "2")
    assert result.parseoutcomes() == {"errors": 1}
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*Different tests were collected between gw? and gw?*"])


def test_a_crashed_worker_is_replaced_and_the_rest_runs(inner: InnerRun) -> None:
    inner.write(test_it=CRASHING)
    result = inner.run("--propolis-hosts", "local:2", "-n", "2")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw*' crashed while running 'test_it.py::test_crashes'*"])
    assert inner.leavings() == []


@pytest.mark.parametrize("arguments", [("-x",), ("--maxfail=1",)])
def test_a_run_that_stops_at_the_first_failure_ends(inner: InnerRun, arguments: tuple[str, ...]) -> None:
    inner.write(
        test_it="import pytest\n@pytest.mark.parametrize('number', range(8))\n"
        "async def test_it(vm_factory, number):\n    assert False\n"
    )
    result = inner.run("--propolis-hosts", "local:2", "-n", "2", *arguments)
    assert result.ret in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.TESTS_FAILED)
    assert 1 <= result.parseoutcomes()["failed"] < 8
    assert inner.leavings() == []


def test_with_a_mode_that_the_user_chose_scheduling_is_xdists(inner: InnerRun) -> None:
    inner.write(
        test_it="import pytest\n@pytest.mark.parametrize('number', range(4))\n"
        "async def test_it(vm_factory, propolis, number):\n    assert len(propolis.placed) == 2\n"
    )
    result = inner.run("--propolis-hosts", "local:2", "-n", "2", "--dist", "worksteal", "-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*WorkStealingScheduling*"])


def test_node_ids_are_the_same_with_and_without_workers(inner: InnerRun) -> None:
    inner.write(test_it=MANY)
    alone = inner.run("--propolis-hosts", "local:2", "--collect-only", "-q")
    spread = inner.run("--propolis-hosts", "local:2", "-n", "2", "-v")
    named = {line for line in alone.outlines if line.startswith("test_it.py::")}
    assert len(named) == 10
    for name in named:
        assert name in spread.stdout.str()


def test_durations_are_remembered_for_the_next_run(inner: InnerRun) -> None:
    cache = inner.pytester.path / ".pytest_cache/v/propolis/durations"
    inner.write(test_it="import time\ndef test_a():\n    time.sleep(0.2)\ndef test_b():\n    pass\n")
    arguments = ("--propolis-hosts", "local:2", "-n", "2")
    inner.run(*arguments).assert_outcomes(passed=2)
    remembered = json.loads(cache.read_text())
    assert remembered.keys() == {"test_it.py::test_a", "test_it.py::test_b"}
    assert remembered["test_it.py::test_a"] >= 0.2
    cache.write_text(json.dumps(remembered | {"gone.py::test": 3.0, "test_it.py::test_b": "nonsense"}))
    inner.run(*arguments).assert_outcomes(passed=2)
    assert json.loads(cache.read_text()).keys() == {*remembered, "gone.py::test"}


SLOW_AROUND_THE_CALL = """
import time
import pytest

@pytest.fixture
def slow_around(test_vm):
    time.sleep(0.4)
    yield
    time.sleep(0.3)

async def test_slow_around(slow_around): ...
"""


def test_the_setup_and_the_teardown_of_a_test_with_a_vm_count(inner: InnerRun) -> None:
    """Xdist tells a scheduler the duration of the call alone, and a boot is in the setup."""
    inner.write(test_it=SLOW_AROUND_THE_CALL)
    inner.run("--propolis-hosts", "local:2", "-n", "1").assert_outcomes(passed=1)
    remembered = json.loads((inner.pytester.path / ".pytest_cache/v/propolis/durations").read_text())
    assert remembered["test_it.py::test_slow_around"] >= 0.7


IMPOSSIBLE = """
import pytest

@pytest.mark.requires(labels=("nowhere",))
async def test_a_label_that_no_host_has(test_vm): ...

@pytest.mark.requires(memory_mib=1 << 24)
async def test_more_memory_than_any_host_has(test_vm): ...

@pytest.mark.multi_node(3)
async def test_more_hosts_than_there_are(remote_hosts): ...

@pytest.mark.parametrize("number", range(3))
def test_other(number): ...
"""


def test_what_no_host_can_run_is_skipped_and_holds_nothing_up(inner: InnerRun) -> None:
    inner.write(test_it=IMPOSSIBLE)
    inner.run("--propolis-hosts", "local:2", "-n", "2").assert_outcomes(passed=3, skipped=3)
