"""Runs of several processes: pytest-xdist's workers share one agent."""

from __future__ import annotations

import json

import pytest
from inner_run import InnerRun

# Each test waits for the other one's file, so that both are under way at the same time, in two workers.
MEETS = """
import asyncio, json, os, pathlib
import pytest

@pytest.mark.parametrize("me", ["left", "right"])
async def test_meet(test_vm, propolis, me):
    place = pathlib.Path(os.environ["MEETING_PLACE"])
    async with await propolis.host.client() as agent:
        info = await agent.info()
        (place / f"{me}.part").write_text(json.dumps([os.getpid(), info.pid, info.run]))
        (place / f"{me}.part").rename(place / f"{me}.json")
        async with asyncio.timeout(60):
            while len(list(place.glob("*.json"))) < 2:
                await asyncio.sleep(0.05)
        assert await test_vm.run("echo $((6 * 7))") == "42"
"""

SAYS_WHETHER = """
def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):
        print("passes on:", session.config.pluginmanager.has_plugin("propolis-interruption"))
"""


def test_two_workers_share_one_agent_which_leaves_with_the_last(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = inner.pytester.mkdir("meeting")
    monkeypatch.setenv("MEETING_PLACE", str(place))
    inner.write(test_it=MEETS)
    inner.run("-n2").assert_outcomes(passed=2)
    assert inner.leavings() == []
    (left_worker, left_agent, left_run), (right_worker, right_agent, right_run) = (
        json.loads((place / f"{name}.json").read_text()) for name in ("left", "right")
    )
    assert left_worker != right_worker
    assert (left_agent, left_run) == (right_agent, right_run)


def test_a_worker_that_dies_takes_its_vms_along_and_no_other(inner: InnerRun) -> None:
    inner.write(
        test_it="import os\n"
        "async def test_dies(test_vm):\n    os._exit(1)\n"
        "async def test_lives(test_vm):\n    await test_vm.run('true')\n"
    )
    result = inner.run("-n2")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw*' crashed while running 'test_it.py::test_dies'*"])
    assert inner.leavings() == []


def test_tests_that_need_no_vm_start_no_agent(inner: InnerRun) -> None:
    inner.write(test_it="import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n, propolis): ...")
    inner.run("-n2").assert_outcomes(passed=4)
    assert not (inner.runtime / "propolis").exists()


def test_a_workers_progress_is_seen_at_once_at_the_controllers_terminal(inner: InnerRun) -> None:
    inner.write(
        test_it="import pytest\n"
        "from pytest_propolis.session.progress import progress_printer\n\n"
        "def test_waits(pytestconfig):\n"
        "    progress_printer(pytestconfig)('VM waits for memory')\n"
        "    print('captured')\n"
    )
    result = inner.run("-n1")
    result.assert_outcomes(passed=1)
    result.stderr.fnmatch_lines(["propolis [[]gw0]: VM waits for memory"])
    assert "captured" not in result.stderr.str()


@pytest.mark.parametrize(
    "workers", [("-n1",), ("-d", "--tx=popen"), ("--dist=each", "--tx=popen")], ids=["processes", "places", "each"]
)
def test_a_controller_passes_interruptions_on_however_its_workers_are_named(
    inner: InnerRun, workers: tuple[str, ...]
) -> None:
    inner.write(conftest=SAYS_WHETHER, test_it="def test_it(): ...")
    inner.run(*workers, "-s").stdout.fnmatch_lines(["passes on: True"])


@pytest.mark.parametrize("workers", [("-n0",), ("-n2", "-n0"), ("--dist=load",)])
def test_a_run_without_workers_has_none_to_interrupt(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(conftest=SAYS_WHETHER, test_it="def test_it(): ...")
    result = inner.run(*workers, "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["passes on: False"])
