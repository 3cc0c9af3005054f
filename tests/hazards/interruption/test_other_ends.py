"""Ends that are no signal from outside: timeouts, -x, workers that crash or will not end. Nothing of a run is left."""

from __future__ import annotations

import signal

import pytest
from live_run import LiveRun, live_run

ENDED_TIMEOUT_S = 120

# VMs are created and not run: what ends the test does not ask the guest.
STUCK = """
import asyncio, pytest, pytest_asyncio
from conftest import reached

@pytest_asyncio.fixture
async def vm(vm_factory):
    vm = await vm_factory.create("victim", guest="micro")
    await vm.ensure()
    reached("logged in")
    return vm

@pytest.mark.timeout(1, func_only=True)
async def test_victim(vm):
    await asyncio.sleep(600)
"""

FAILING = """
import pytest
from conftest import reached

@pytest.mark.parametrize("number", range(4))
async def test_victim(vm_factory, number):
    await (await vm_factory.create("victim", guest="micro")).ensure()
    reached("logged in")
    assert number != 1
"""

CRASHING = """
import os, pytest, signal
from conftest import reached

@pytest.mark.parametrize("number", range(4))
async def test_victim(vm_factory, number):
    await (await vm_factory.create("victim", guest="micro")).ensure()
    reached("logged in")
    if number == 0:
        os._exit(3)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""

DEAF = """
import signal, time
from conftest import reached

async def test_victim(vm_factory):
    await (await vm_factory.create("victim", guest="micro")).ensure()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    reached("logged in")
    time.sleep(600)
"""


def require_end(run: LiveRun, status: int, *said: str) -> None:
    assert run.wait_ended(ENDED_TIMEOUT_S) == status, run.output
    for text in said:
        assert text in run.output
    run.wait_until_clean()


@pytest.mark.parametrize(("method", "workers"), [("signal", ()), ("thread", ()), ("thread", ("-n", "2"))])
def test_a_test_that_pytest_timeout_ends(method: str, workers: tuple[str, ...]) -> None:
    pytest.importorskip("pytest_timeout")
    with live_run("logged in", f"--timeout-method={method}", *workers, test=STUCK) as run:
        said = {"signal": "1 failed", "thread": "1 failed" if workers else "Timeout"}[method]
        require_end(run, pytest.ExitCode.TESTS_FAILED, said)


def test_the_first_failure_ends_the_run() -> None:
    with live_run("logged in", "-x", test=FAILING) as run:
        require_end(run, pytest.ExitCode.TESTS_FAILED, "1 failed, 1 passed")


def test_so_many_failures_end_the_run_of_several_workers() -> None:
    with live_run("logged in", "-n", "2", "--maxfail=1", test=FAILING) as run:
        require_end(run, pytest.ExitCode.INTERRUPTED, "stopping after 1 failures")


def test_workers_that_crash_are_replaced_and_the_others_tests_pass() -> None:
    with live_run("logged in", "-n", "1", test=CRASHING) as run:
        crashes = ("worker 'gw0' crashed while running", "worker 'gw1' crashed while running")
        require_end(run, pytest.ExitCode.TESTS_FAILED, "2 failed, 2 passed", *crashes)


@pytest.mark.slow
def test_a_worker_that_is_deaf_is_killed_by_xdist() -> None:
    with live_run("logged in", "-n", "2", test=DEAF) as run:
        run.hit("controller", signal.SIGINT)
        require_end(run, pytest.ExitCode.INTERRUPTED, "no tests ran")
