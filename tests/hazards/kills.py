"""The ways in which a run is killed whose victim is in the middle of something: nothing of it may be left."""

from __future__ import annotations

import contextlib
import signal

import pytest
from live_run import LiveRun

__all__ = ["SIGNALS", "a_qemu_is_killed", "the_agent_is_killed", "the_run_is_hit"]

ENDED_TIMEOUT_S = 90

SIGNALS = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)


def the_run_is_hit(run: LiveRun, number: signal.Signals) -> None:
    run.hit("controller", number)
    run.controller.wait(ENDED_TIMEOUT_S)
    run.wait_until_clean()


def a_qemu_is_killed(run: LiveRun) -> None:
    """The guest is in it or not, and nobody knows: the test fails, or goes on until the end."""

    def is_killed() -> bool:
        with contextlib.suppress(StopIteration, ProcessLookupError):  # there is none just now
            run.hit("qemu", signal.SIGKILL)
            return True
        return False

    run.wait_until(is_killed)
    run.hit("controller", signal.SIGINT)
    run.controller.wait(ENDED_TIMEOUT_S)
    run.wait_until_clean()


def the_agent_is_killed(run: LiveRun) -> None:
    """All QEMUs go with it, and what the ledger lists is collected."""
    run.hit("agent", signal.SIGKILL)
    assert run.controller.wait(ENDED_TIMEOUT_S) == pytest.ExitCode.TESTS_FAILED, run.output
    assert not [line for line in run.processes().values() if "qemu" in line]
    run.collect_garbage()
    run.wait_until_clean()
