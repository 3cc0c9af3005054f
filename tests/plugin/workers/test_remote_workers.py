"""Workers that are named with ``--tx``, some of them behind proxies, and the hosts of their tests."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from inner_run import InnerRun

TESTS = """
import json, os
import pytest

@pytest.mark.parametrize("number", range(8))
async def test_it(test_vm, propolis, number):
    assert await test_vm.run("echo up") == "up"
    with open("placed.jsonl", "a") as file:
        file.write(json.dumps([os.environ["PYTEST_XDIST_WORKER"], propolis.placed[0].name]) + "\\n")

@pytest.mark.multi_node(2)
async def test_on_two_hosts(vm_factory, remote_hosts):
    for host in remote_hosts:
        await vm_factory.start(host.name, host=host)
"""

INVENTORY = """
[hosts.left]
kind = "local"
slots = 2

[hosts.right]
kind = "local"
slots = 2
"""

THROUGH_PROXIES = (
    "--px=id=left//popen",
    "--px=id=right//popen",
    "--tx=popen//via=left//id=left-0",
    "--tx=popen//via=right//id=right-0",
)


@pytest.fixture
def placed(inner: InnerRun) -> InnerRun:
    inner.write(test_it=TESTS)
    (inner.pytester.path / "hosts.toml").write_text(INVENTORY)
    return inner


def test_workers_behind_proxies_run_tests_and_leave_nothing(placed: InnerRun) -> None:
    result = placed.run("--propolis-hosts", "hosts.toml", *THROUGH_PROXIES, "-v")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(["*HostScheduling*"])
    rows = [json.loads(line) for line in (placed.pytester.path / "placed.jsonl").read_text().splitlines()]
    assert {worker for worker, _ in rows} == {"left-0", "right-0"}
    assert placed.leavings() == []


@pytest.mark.parametrize(
    ("arguments", "scheduling"),
    [(("--tx=2*popen",), "HostScheduling"), (("--tx=2*popen", "--dist=load"), "LoadScheduling")],
    ids=["no mode is chosen", "a mode is chosen"],
)
def test_workers_that_are_named_are_started(placed: InnerRun, arguments: Sequence[str], scheduling: str) -> None:
    result = placed.run("--propolis-hosts", "hosts.toml", *arguments, "-v")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines([f"*{scheduling}*"])


def test_no_worker_is_started_where_none_is_wanted(placed: InnerRun) -> None:
    result = placed.run("--propolis-hosts", "hosts.toml", "--tx=2*popen", "-n0", "--collect-only", "-q")
    assert "HostScheduling" not in result.stdout.str()
    assert result.ret == pytest.ExitCode.OK
