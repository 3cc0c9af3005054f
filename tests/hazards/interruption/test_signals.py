"""SIGTERM and SIGHUP: they end a run with VMs in order, and change nothing for one without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from live_run import live_run

ENDED_TIMEOUT_S = 60

WAITS = """
import asyncio, pytest, pytest_asyncio
from conftest import reached

@pytest_asyncio.fixture
async def last_words():
    yield
    print("the finalizer has run")

async def test_victim(last_words, vm_factory):
    await (await vm_factory.create("victim", guest="micro")).ensure()
    reached("logged in")
    await asyncio.sleep(600)
"""

HANDLERS = """
import signal

def test_it():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
"""

FORKS = """
import multiprocessing, signal, time

async def test_it(test_vm):
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
"""

TERMINATED_WORKER = """
import os, signal, time

def test_dies():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

def test_lives():
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_was_started_with_sigint_ignored_can_be_ended(number: signal.Signals) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        context = live_run("logged in", "-s", test=WAITS)
        with context as run:
            signal.signal(signal.SIGINT, previous)
            os.kill(run.controller.pid, number)
            assert run.wait_ended(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
            assert "the finalizer has run" in run.output
            run.wait_until_clean()
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_run_without_vms_keeps_the_handlers_that_it_has(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(HANDLERS)
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        pytester.runpytest_subprocess("-p", "propolis").assert_outcomes(passed=1)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_a_process_that_was_forked_dies_of_the_signal_that_it_gets(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FORKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "propolis", "--propolis-guest", "micro"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    )
    assert "1 passed" in done.stdout, done.stdout


def test_a_worker_that_gets_sigterm_is_replaced(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TERMINATED_WORKER)
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        result = pytester.runpytest_subprocess("-p", "propolis", "-n", "1", timeout=120)
    finally:
        signal.signal(signal.SIGTERM, previous)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running*test_dies*"])
