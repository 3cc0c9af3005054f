"""VMs and disks that stay after their test, for a person."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artifact_stores import store_without_templates
from inner_run import InnerRun
from propolis_command import propolis
from reruns import RERUNS_ONCE

WAIT_S = 60

TESTS = """
import pytest
import pytest_asyncio
from pytest_propolis import DataDisk

async def test_fails(vm_factory):
    vm = await vm_factory.start("alice", memory_mib=192, disks=(DataDisk(name="data", size_mib=1),))
    await vm.run("cd /tmp; greeting=hello; exec_me=1")
    assert await vm.run("echo one") == "two"

async def test_passes(vm_factory):
    await (await vm_factory.create("bob")).launch()

@pytest_asyncio.fixture
async def in_setup(vm_factory):
    await (await vm_factory.create("carol")).launch()
    raise RuntimeError("in setup")

async def test_fails_in_setup(in_setup): ...

@pytest_asyncio.fixture
async def in_teardown(vm_factory):
    await (await vm_factory.create("dave")).launch()
    yield
    raise RuntimeError("in teardown")

async def test_fails_in_teardown(in_teardown): ...

@pytest.mark.xfail
async def test_fails_as_expected(vm_factory):
    await (await vm_factory.create("erin")).launch()
    assert False
"""

SHARED = """
import pytest, pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(propolis):
    async with propolis.vm_factory() as factory:
        vm = await factory.create("shared")
        await vm.launch()
        yield vm

async def test_first(shared): ...
async def test_second(shared): assert shared is None
async def test_third(shared): ...
"""


@pytest.fixture(autouse=True)
def nothing_kept(inner: InnerRun) -> Iterator[None]:
    """Remove kept resources after the test; the fixture `inner` checks that nothing else is left."""
    yield
    propolis("gc", "--kept")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def kept_names(result: pytest.RunResult) -> set[str]:
    return set(re.findall(r"^  propolis console \w+ +# VM '(\w+)'", result.stdout.str(), re.MULTILINE))


def kept_ids(result: pytest.RunResult) -> set[str]:
    return set(re.findall(r"^  propolis console (\w+)", result.stdout.str(), re.MULTILINE))


def kept_id(result: pytest.RunResult) -> str:
    (found,) = kept_ids(result)
    return found


@pytest.mark.parametrize("workers", [pytest.param((), marks=pytest.mark.slow), ("-n2",)], ids=["alone", "xdist"])
def test_the_vms_of_failed_tests_stay_and_no_others(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=failed", *workers)
    result.assert_outcomes(failed=1, passed=2, errors=2, xfailed=1)
    assert kept_names(result) == {"alice", "carol", "dave"}
    listed = propolis("ps", "--kept")
    assert {name for name in ("alice", "bob", "carol", "dave", "erin") if f"'{name}', Running" in listed} == {
        "alice",
        "carol",
        "dave",
    }
    (disk,) = re.findall(r"^  disk (\S+\.qcow2)$", result.stdout.str(), re.MULTILINE)
    assert Path(disk).is_file()
    assert str(Path(disk).parent) in listed  # a fork has its disks in its own directory
    removed = propolis("gc", "--kept")
    assert set(re.findall(r"^removed VM (\w+) ", removed, re.MULTILINE)) == kept_ids(result)
    assert inner.leavings() == []


def test_always_keeps_the_vms_of_passed_tests_too(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=always", "-k", "test_passes or test_fails_as_expected")
    result.assert_outcomes(passed=1, xfailed=1)
    assert kept_names(result) == {"bob", "erin"}
    assert result.ret == pytest.ExitCode.OK


def test_never_keeps_nothing(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("-k", "test_fails_in_teardown")
    result.assert_outcomes(passed=1, errors=1)
    assert kept_names(result) == set()
    assert inner.leavings() == []


@pytest.mark.parametrize("failing", [True, False])
def test_a_shared_vm_stays_if_a_test_failed_that_used_it(inner: InnerRun, failing: bool) -> None:
    inner.write(test_it=SHARED)
    result = inner.run("--propolis-keep=failed", *(() if failing else ("--deselect=test_it.py::test_second",)))
    result.assert_outcomes(failed=1, passed=2) if failing else result.assert_outcomes(passed=2, deselected=1)
    assert kept_names(result) == ({"shared"} if failing else set())


RUN_AGAIN = """
OUTCOMES = iter({outcomes})

async def test_it(vm_factory):
    await (await vm_factory.create("vm")).launch()
    assert next(OUTCOMES)
"""


@pytest.mark.parametrize(
    ("outcomes", "kept"), [([False, True], 0), ([False, False], 1), ([True], 0)], ids=["passes", "fails", "once"]
)
def test_of_a_test_that_is_run_again_only_a_last_failed_attempt_stays(
    inner: InnerRun, outcomes: list[bool], kept: int
) -> None:
    inner.write(conftest=RERUNS_ONCE, test_it=RUN_AGAIN.format(outcomes=outcomes))
    result = inner.run("--propolis-keep=failed")
    assert len(kept_ids(result)) == kept
    assert propolis("ps", "--kept").count("'vm', Running") == kept


@pytest.mark.parametrize("outcomes", [[False, True], [False, False]], ids=["passes", "fails"])
def test_a_shared_vm_stays_if_a_test_failed_in_its_last_attempt(inner: InnerRun, outcomes: list[bool]) -> None:
    inner.write(
        conftest=f"{RERUNS_ONCE}\nOUTCOMES = iter({outcomes})\n",
        test_it=SHARED.replace("shared is None", "next(__import__('conftest').OUTCOMES)"),
    )
    result = inner.run("--propolis-keep=failed")
    assert kept_names(result) == (set() if outcomes[-1] else {"shared"})


def test_a_shared_vm_stays_where_the_run_ends_at_the_first_failure(inner: InnerRun) -> None:
    inner.write(test_it=SHARED)
    result = inner.run("--propolis-keep=failed", "-x")
    result.assert_outcomes(passed=1, failed=1)
    assert kept_names(result) == {"shared"}


def test_the_report_says_how_to_reach_what_stays(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=failed", "-k", "test_fails", "--deselect=test_it.py::test_fails_as_expected")
    stays = re.findall(r"^stays:   propolis console (\w+)$", result.stdout.str(), re.MULTILINE)
    assert set(stays) == kept_ids(result)


def test_a_person_finds_a_prompt_in_the_shell_of_the_user(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=failed", "-k", "test_fails and not in_ and not expected")
    vm = kept_id(result)
    text = propolis("console", vm[:6], typed="echo $((6 * 7)); tty; exit\n")
    assert "\n42\n" in text.replace("\r", "")
    assert "/dev/ttyS0" in text
    # Another shell comes for who left the first one.
    assert "# " in propolis("console", vm, typed="echo again\n").replace("\r", "").rpartition("\nagain\n")[2]


def test_what_was_kept_leaves_when_its_time_is_over(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    inner.run("--propolis-keep=always", "--propolis-keep-ttl=1", "-k", "test_passes").assert_outcomes(passed=1)
    wait_until(lambda: inner.leavings() == [])


def test_an_agent_that_is_killed_takes_its_vms_along_and_leaves_the_disks_for_gc(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=failed", "-k", "test_fails and not in_ and not expected")
    (disk,) = re.findall(r"^  disk (\S+)$", result.stdout.str(), re.MULTILINE)
    kill_agent(inner)
    home = Path(disk).parent  # of a fork
    assert f"kept directory {home}" in propolis("gc")
    assert Path(disk).is_file()
    assert f"removed directory {home}" in propolis("gc", "--kept")
    assert inner.leavings() == []


def test_a_kept_disk_keeps_the_template_that_it_is_an_overlay_on(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = store_without_templates(tmp_path / "artifacts")
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(store))
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=failed", "-k", "test_fails and not in_ and not expected")
    (disk,) = re.findall(r"^  disk (\S+)$", result.stdout.str(), re.MULTILINE)
    (template,) = (store / "templates" / "derived").iterdir()
    kill_agent(inner)
    collected = propolis("gc", "--templates")
    assert f"kept directory {Path(disk).parent}" in collected
    assert str(template) not in collected
    os.utime(template / "manifest.json", (0, 0))  # the next agent removes what was not used for long
    inner.run("-k", "test_passes").assert_outcomes(passed=1)
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    assert f"removed {template} " in propolis("gc", "--kept", "--templates")


def kill_agent(inner: InnerRun) -> None:
    (agent,) = [int(process.name) for process in inner.processes() if b"pytest_propolis.agent" in command(process)]
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: not list(inner.processes()))


def command(process: Path) -> bytes:
    return (process / "cmdline").read_bytes()


def test_an_interrupted_test_has_not_failed(inner: InnerRun) -> None:
    inner.write(
        test_it="import signal\n"
        "async def test_it(vm_factory):\n"
        "    await (await vm_factory.create()).launch()\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    await __import__('asyncio').sleep(600)\n"
    )
    result = inner.run("--propolis-keep=failed")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert kept_names(result) == set()
    assert inner.leavings() == []


def test_gc_that_is_only_tried_removes_nothing(inner: InnerRun) -> None:
    inner.write(test_it=TESTS)
    result = inner.run("--propolis-keep=always", "-k", "test_passes")
    assert f"would remove VM {kept_id(result)} 'bob'" in propolis("gc", "--kept", "--dry-run")
    assert f"kept VM {kept_id(result)} 'bob'" in propolis("gc")
    assert kept_id(result) in propolis("ps")


def test_what_is_kept_is_found_from_a_shell_with_another_runtime_directory(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner.write(test_it="async def test_passes(vm_factory):\n    await vm_factory.start('bob')")
    vm = kept_id(inner.run("--propolis-keep=always"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(inner.pytester.mkdir("other")))
    assert vm in propolis("ps", "--kept")
    assert "\n42\n" in propolis("console", vm, typed="echo $((6 * 7))\n").replace("\r", "")
    assert "nothing to remove" in propolis("gc")
    assert f"removed VM {vm}" in propolis("gc", "--kept")
