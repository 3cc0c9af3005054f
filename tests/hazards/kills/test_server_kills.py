"""Signals that hit a run whose VMs are served by programs of their own: nothing of the run is left.

HAZARDS=all tests every phase in which there is a server.
"""

from __future__ import annotations

import os
import signal

import pytest
from live_run import live_run

PROGRAM = ("--propolis-server", "propolis-server-qemu")
PHASES = ("booting", "logged in", "tearing down") if os.environ.get("HAZARDS") == "all" else ("logged in",)
ENDED_TIMEOUT_S = 120


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("server", signal.SIGKILL),
        pytest.param("server", signal.SIGTERM, marks=pytest.mark.slow),
        ("qemu", signal.SIGKILL),
        ("agent", signal.SIGKILL),
        pytest.param("agent", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("controller", signal.SIGKILL, marks=pytest.mark.slow),
        ("group", signal.SIGINT),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_nothing_is_left(phase: str, target: str, number: signal.Signals) -> None:
    with live_run(phase, *PROGRAM) as run:
        run.hit(target, number)
        run.require_nothing_left(target, number, timeout_s=ENDED_TIMEOUT_S)
