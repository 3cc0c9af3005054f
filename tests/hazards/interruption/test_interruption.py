"""Ctrl-C once, twice, three times, and finalizers that hang or raise: a summary comes, and all is gone."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable

import pytest
from live_run import LiveRun, live_run

ENDED_TIMEOUT_S = 60

MANY_VMS = """
from conftest import reached

async def test_victim(vm_factory):
    for number in range(8):
        vm = await vm_factory.create(f"vm-{number}", guest="micro")
        await vm.ensure()
    reached("logged in")
    await vm.wait_for_serial_output("this never comes", timeout_s=600)
"""

HANGING_FINALIZER = """
import asyncio, os, pytest_asyncio
from pathlib import Path
from conftest import reached

@pytest_asyncio.fixture
async def hanging(vm_factory):
    yield
    (Path(os.environ["TMPDIR"]) / "hangs").touch()
    await asyncio.sleep(600)

async def test_victim(vm_factory, hanging):
    for name in ("first", "second", "third"):
        vm = await vm_factory.create(name, guest="micro")
        await vm.ensure()
    reached("logged in")
    await asyncio.sleep(600)
"""

RAISING_FINALIZERS = """
import asyncio, pytest, pytest_asyncio
from conftest import reached

@pytest.fixture(scope="session")
def last():
    yield
    print("the last finalizer has run")

@pytest_asyncio.fixture
async def raising(last, vm_factory):
    yield
    raise ValueError("a finalizer of the user's")

@pytest_asyncio.fixture
async def cancelled(raising):
    yield
    raise asyncio.CancelledError

async def test_victim(vm_factory, cancelled):
    vm = await vm_factory.create("vm", guest="micro")
    await vm.ensure()
    reached("logged in")
    await asyncio.sleep(600)
"""

BUSY_CONTROLLER = """
import time

def pytest_runtest_logstart():
    while "PYTEST_XDIST_WORKER" not in os.environ:
        time.sleep(0.1)
"""


def wait_until_it_hangs(run: LiveRun) -> None:
    wait_for(run, lambda: (run.scratch / "hangs").exists())


def wait_for_output(run: LiveRun, text: str) -> None:
    wait_for(run, lambda: text in run.output)


def wait_for(run: LiveRun, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDED_TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, run.output
        assert run.controller.poll() is None, run.output
        select.select([], [], [], 0.02)


def require_interrupted(run: LiveRun, *, statuses: tuple[int, ...] = (pytest.ExitCode.INTERRUPTED,)) -> None:
    assert run.controller.wait(ENDED_TIMEOUT_S) in statuses, run.output
    assert "no tests ran in" in run.output
    assert "Traceback" not in run.output
    run.wait_until_clean()


def test_ctrl_c_with_eight_vms_up() -> None:
    with live_run("logged in", test=MANY_VMS) as run:
        run.hit("group", signal.SIGINT)
        require_interrupted(run)


@pytest.mark.parametrize("target", ["controller", "group"])
def test_a_second_ctrl_c_leaves_the_vms_to_the_agent_and_says_so(target: str) -> None:
    with live_run("logged in", "-s", test=HANGING_FINALIZER) as run:
        run.hit(target, signal.SIGINT)
        wait_until_it_hangs(run)
        run.hit(target, signal.SIGINT)
        require_interrupted(run)
        assert "3 VMs are being removed in the background" in run.output


def test_a_third_ctrl_c_does_no_harm() -> None:
    with live_run("logged in", "-s", test=HANGING_FINALIZER) as run:
        run.hit("group", signal.SIGINT)
        wait_until_it_hangs(run)
        run.hit("group", signal.SIGINT)
        wait_for_output(run, "being removed in the background")
        if run.controller.poll() is None:
            run.hit("group", signal.SIGINT)
        # One that comes after pytest's own end finds Python's way of dealing with it.
        require_interrupted(run, statuses=(pytest.ExitCode.INTERRUPTED, -signal.SIGINT))


@pytest.mark.parametrize("target", ["controller", "group"])
@pytest.mark.parametrize("workers", [("-n", "2"), ("-d", "--tx", "2*popen")], ids=" ".join)
def test_a_second_ctrl_c_under_xdist_leaves_the_vms_to_the_agent_and_says_so(
    workers: tuple[str, ...], target: str
) -> None:
    with live_run("logged in", *workers, test=HANGING_FINALIZER) as run:
        run.hit(target, signal.SIGINT)
        wait_until_it_hangs(run)
        run.hit(target, signal.SIGINT)
        require_interrupted(run)
        assert "3 VMs are being removed in the background" in run.output


def test_a_second_ctrl_c_to_a_worker_alone_ends_it_within_seconds() -> None:
    with live_run("logged in", "-n", "1", "--max-worker-restart=0", test=HANGING_FINALIZER) as run:
        run.hit("worker", signal.SIGINT)
        wait_until_it_hangs(run)
        run.hit("worker", signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        run.wait_until_clean()


def test_finalizers_that_raise_or_are_cancelled_do_not_keep_others_from_running() -> None:
    with live_run("logged in", "-s", test=RAISING_FINALIZERS) as run:
        run.hit("controller", signal.SIGINT)
        require_interrupted(run)
        assert "a finalizer failed: ValueError: a finalizer of the user's" in run.output
        assert "the last finalizer has run" in run.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_controller_that_has_read_no_report_yet_ends_its_run_in_order(number: signal.Signals) -> None:
    with live_run("logged in", "-n", "2", conftest=BUSY_CONTROLLER) as run:
        run.hit("controller", number)
        require_interrupted(run)
