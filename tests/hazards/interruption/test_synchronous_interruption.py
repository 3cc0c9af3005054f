"""Ctrl-C and SIGTERM while a synchronous test waits for its VM."""

from __future__ import annotations

import signal

import pytest
from live_run import live_run

ENDED_TIMEOUT_S = 60

TEST = """
from conftest import reached

def test_victim(propolis_sync):
    vm = propolis_sync.create("victim", guest="micro")
    vm.ensure()
    reached("logged in")
    vm.wait_for_serial_output("this never comes", timeout_s=600)
"""


HANGING_FINALIZER = """
import os, pytest
from pathlib import Path
from conftest import reached

@pytest.fixture
def hanging(propolis_sync):
    yield
    (Path(os.environ["TMPDIR"]) / "hangs").touch()
    propolis_sync.vms[0].wait_for_serial_output("this never comes", timeout_s=600)

def test_victim(propolis_sync, hanging):
    vm = propolis_sync.create("victim", guest="micro")
    vm.ensure()
    reached("logged in")
    vm.wait_for_serial_output("this never comes", timeout_s=600)
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_ctrl_c_ends_a_synchronous_test_and_nothing_stays(workers: tuple[str, ...]) -> None:
    with live_run("logged in", *workers, test=TEST) as run:
        run.hit("group", signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        assert "Traceback" not in run.output
        run.wait_until_clean()


def test_a_second_ctrl_c_leaves_the_vm_to_the_agent_and_says_so() -> None:
    with live_run("logged in", "-s", test=HANGING_FINALIZER) as run:
        run.hit("group", signal.SIGINT)
        run.wait_until((run.scratch / "hangs").exists)
        run.hit("group", signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        assert "1 VM is being removed in the background" in run.output
        run.wait_until_clean()


def test_sigterm_does_what_ctrl_c_does() -> None:
    with live_run("logged in", test=TEST) as run:
        run.hit("controller", signal.SIGTERM)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        run.wait_until_clean()
