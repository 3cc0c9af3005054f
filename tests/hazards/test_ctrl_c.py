"""Ctrl-C in the middle of something slow: the run ends soon, and its VM is gone."""

from __future__ import annotations

import signal

import pytest
from live_run import live_run

# Seconds are promised on an idle machine; tests run on busy ones.
ENDED_TIMEOUT_S = 30


@pytest.mark.parametrize("target", ["controller", "group"])
@pytest.mark.parametrize("phase", ["booting", "logged in"])
def test_ctrl_c_while_a_guest_boots_or_output_is_waited_for(phase: str, target: str) -> None:
    with live_run(phase) as run:
        run.wait_for("qemu")
        run.hit(target, signal.SIGINT)
        assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.INTERRUPTED, run.output
        assert "no tests ran" in run.output
        run.wait_until_clean()
