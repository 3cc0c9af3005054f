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


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_ctrl_c_ends_a_synchronous_test_and_nothing_stays(workers: tuple[str, ...]) -> None:
    with live_run("logged in", *workers, test=TEST) as run:
        run.hit("group", signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        assert "Traceback" not in run.output
        run.wait_until_clean()


def test_sigterm_does_what_ctrl_c_does() -> None:
    with live_run("logged in", test=TEST) as run:
        run.hit("controller", signal.SIGTERM)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        run.wait_until_clean()
