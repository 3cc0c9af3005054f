"""How signals end a run that pytest-xdist distributes, and one that it does not.

By itself xdist lets a worker go on with its test when the controller is interrupted, and kills it some seconds later
without any teardown. Here the controller passes the interruption on.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from subprocess import Popen
from typing import Any, Final

import pytest

from ..session.internals import (
    call_in_controller,
    is_controller,
    is_worker,
    local_process,
    open_channel,
    run_id_of,
    worker_input,
)
from ..session.progress import line_printer
from ..session.signals import Interruption
from ..session.stash import SETTINGS
from ..settings import Settings
from .run_events import VMS_ATTRIBUTE, run_events

__all__ = ["VmTestAnnouncer", "WorkerInterrupter", "interruption_for"]

VM_TESTS_CHANNEL: Final = "propolis_vm_tests_channel"

CONTROLLER_PATIENCE_S: Final = 3.0
"""How long a worker that gets a further Ctrl-C waits for its controller to end it, before it gives up its waits."""

INTERRUPT: Final = signal.SIGRTMAX
"""What the controller sends its workers. Not SIGINT: a terminal has sent them that already, and a second one would not
let them finish. Not SIGTERM: a worker that gets that from elsewhere dies of it, and xdist replaces it."""


def interruption_for(config: pytest.Config) -> Interruption:
    """Return how signals end the run of this process: a worker, a controller, or a run of one process."""
    say = line_printer(config)
    if is_worker(config):
        if VM_TESTS_CHANNEL in worker_input(config):
            config.pluginmanager.register(VmTestAnnouncer(config), "propolis-vm-tests")
        return Interruption(
            say,
            signals=(signal.SIGHUP,),
            always=(INTERRUPT,),
            abandon=(_abandon_to_agents,),
            patience_s=CONTROLLER_PATIENCE_S,
        )
    if is_controller(config):
        workers = WorkerInterrupter(config.stash[SETTINGS])
        interruption = Interruption(say, abandon=(_abandon_to_agents, workers.kill), breaks_waits=False)
        workers.interruption = interruption
        config.pluginmanager.register(workers, "propolis-interruption")
        run_events(config).on_report.append(workers.reported)
        return interruption
    return Interruption(say, abandon=(_abandon_to_agents,))


def _abandon_to_agents() -> int:
    from ..hosts.abandonment import abandon_to_agents

    return abandon_to_agents()


class VmTestAnnouncer:
    """A plugin of the worker's: notifies the controller when it has collected tests that use VMs.

    A controller that learned of VMs from reports alone would die of a SIGTERM that comes before it has read the first.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._channel = worker_input(config)[VM_TESTS_CHANNEL]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Before xdist reports that the collection is complete, so before the controller starts a test."""
        if any("propolis" in getattr(item, "fixturenames", ()) for item in session.items):
            self._channel.send(True)


class WorkerInterrupter:
    """A plugin of the controller's: knows the workers on this machine, and passes an interruption on."""

    interruption: Interruption

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._nodes: list[Any] = []
        self._run_ids: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        channel = open_channel(node, VM_TESTS_CHANNEL)
        channel.setcallback(lambda _: call_in_controller(node.config, self.interruption.arm, delay_s=0))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodeready(self, node: Any) -> None:
        self._nodes.append(node)
        self._run_ids.add(run_id_of(node))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        with contextlib.suppress(ValueError):
            self._nodes.remove(node)

    def reported(self, report: pytest.TestReport) -> None:
        if getattr(report, VMS_ATTRIBUTE, False):
            self.interruption.arm()

    def pytest_keyboard_interrupt(self) -> None:
        for process in self._processes():
            process.send_signal(INTERRUPT)

    def kill(self) -> int:
        """End the workers at once. What they own is left to the agent.

        :returns: how many VMs that are.
        """
        from ..hosts.abandonment import vms_of_run
        from ..hosts.run_hosts import local_run_ids

        vms = sum(
            vms_of_run(run) for shared_id in self._run_ids for run in local_run_ids(self._settings, shared_id=shared_id)
        )
        for process in self._processes():
            process.kill()
        return vms

    def _processes(self) -> Iterator[Popen[bytes]]:
        for node in self._nodes:
            if (process := local_process(node)) is not None:
                yield process
