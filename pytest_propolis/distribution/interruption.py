"""Ctrl-C for xdist's workers: what interrupts the controller interrupts them, too.

By itself xdist lets a worker go on with its test, and kills it some seconds later without any teardown.
"""

from __future__ import annotations

import contextlib
import signal
from subprocess import Popen
from typing import Any, Final

import pytest

__all__ = ["CONTROLLER_PATIENCE_S", "WorkerInterrupter"]

CONTROLLER_PATIENCE_S: Final = 3.0
"""How long a worker that gets a further Ctrl-C waits for its controller to end it, before it gives up its waits."""


class WorkerInterrupter:
    """A plugin of the controller's: knows the workers on this machine, and passes an interruption on."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._run_ids: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        self._nodes.append(node)
        self._run_ids.add(node.workerinput["testrunuid"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        with contextlib.suppress(ValueError):
            self._nodes.remove(node)

    def pytest_keyboard_interrupt(self) -> None:
        # Not SIGINT: a terminal has sent them that already, and a second one would not let them finish.
        for process in self._processes():
            process.send_signal(signal.SIGTERM)

    def let_go(self) -> int:
        """End the workers at once. What they own is left to the agent.

        :returns: how many VMs that are.
        """
        from ..hosts.abandonment import vms_of_run
        from ..hosts.run_directory import run_token

        vms = sum(vms_of_run(run_token(run_id)) for run_id in self._run_ids)
        for process in self._processes():
            process.kill()
        return vms

    def _processes(self) -> list[Popen[bytes]]:
        # execnet shows the process of a worker on this machine nowhere else; a worker elsewhere has none.
        found = (getattr(node.gateway._io, "popen", None) for node in self._nodes)
        return [process for process in found if process is not None]
