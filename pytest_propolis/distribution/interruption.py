"""Ctrl-C for xdist's workers: what interrupts the controller interrupts them, too.

By itself xdist lets a worker go on with its test, and kills it some seconds later without any teardown.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import pytest

__all__ = ["WorkerInterrupter"]


class WorkerInterrupter:
    """A plugin of the controller's: knows the workers on this machine, and passes an interruption on."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        self._nodes.append(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        with contextlib.suppress(ValueError):
            self._nodes.remove(node)

    def pytest_keyboard_interrupt(self) -> None:
        for node in self._nodes:
            # execnet shows the process of a worker on this machine nowhere else; a worker elsewhere has none.
            process = getattr(node.gateway._io, "popen", None)
            if process is not None:
                process.send_signal(signal.SIGINT)
