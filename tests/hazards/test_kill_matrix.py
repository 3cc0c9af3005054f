"""Whatever kills whatever part of a run, whenever: nothing of the run is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from live_run import live_run

XDIST = ("-n", "2")
POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDED_TIMEOUT_S = 60


@pytest.mark.parametrize("arguments", [(), XDIST], ids=["plain", "xdist"])
@pytest.mark.parametrize("phase", ["booting", "logged in"])
@pytest.mark.parametrize("number", POLITE, ids=lambda number: number.name)
def test_polite_signal_to_the_controller_ends_the_run_as_ctrl_c_does(
    number: signal.Signals, phase: str, arguments: tuple[str, ...]
) -> None:
    with live_run(phase, *arguments) as run:
        run.hit("controller", number)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        assert "KeyboardInterrupt" in run.output
        run.wait_until_clean()


@pytest.mark.parametrize("arguments", [(), XDIST], ids=["plain", "xdist"])
def test_ctrl_c_at_the_terminal_hits_the_whole_group(arguments: tuple[str, ...]) -> None:
    with live_run("logged in", *arguments) as run:
        run.hit("group", signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        run.wait_until_clean()


def test_a_second_ctrl_c_does_not_wait_for_a_finalizer_that_hangs() -> None:
    with live_run("tearing down") as run:
        run.hit("controller", signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        run.wait_until_clean()


@pytest.mark.parametrize("phase", ["booting", "logged in", "tearing down"])
@pytest.mark.parametrize("target", ["controller", "group"])
def test_sigkill_of_pytest(target: str, phase: str) -> None:
    with live_run(phase) as run:
        run.hit(target, signal.SIGKILL)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


@pytest.mark.parametrize("target", ["controller", "group"])
def test_sigkill_under_xdist(target: str) -> None:
    with live_run("logged in", *XDIST) as run:
        run.hit(target, signal.SIGKILL)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


def test_sigkill_of_a_worker() -> None:
    with live_run("logged in", "-n", "1", "--max-worker-restart=0") as run:
        run.hit("worker", signal.SIGKILL)
        run.controller.wait(ENDED_TIMEOUT_S)
        run.wait_until_clean()


@pytest.mark.parametrize("phase", ["booting", "logged in"])
def test_sigkill_of_qemu_fails_the_test_at_once(phase: str) -> None:
    with live_run(phase) as run:
        run.wait_for("qemu")  # the first phase begins just before it
        run.hit("qemu", signal.SIGKILL)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED, run.output
        assert "1 failed" in run.output
        run.wait_until_clean()


def test_sigkill_of_the_agent_takes_its_vms_along_and_gc_removes_the_rest() -> None:
    with live_run("logged in") as run:
        run.hit("agent", signal.SIGKILL)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED, run.output
        assert not [line for line in run.processes().values() if "qemu" in line]
        assert run.files(), "a dead agent cannot have removed its directory"
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(run.files()[0]).partition("/propolis/")[0]}
        gc = [sys.executable, "-c", "from pytest_propolis.cli import main; main()", "gc"]
        done = subprocess.run(gc, env=environment, capture_output=True, text=True, check=True)
        assert "removed" in done.stdout
        run.wait_until_clean()
