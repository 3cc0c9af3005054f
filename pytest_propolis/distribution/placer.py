"""The plugin of xdist's controller that has tests placed on hosts: it connects the scheduler with the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from ..session.internals import call_in_controller, quick_imports, run_id_of
from .run_events import run_events
from .scheduling.needs import Needs
from .status.source import STATUS_SOURCE
from .worker_channel import LOST_HOSTS_ATTRIBUTE, Collected, Elsewhere, WorkerChannel

if TYPE_CHECKING:
    from .xdist_scheduling import HostScheduling

__all__ = ["Placer"]


class Placer:
    """A plugin of the controller's: opens a channel to each worker, and hands xdist the scheduler.

    :param measured_elsewhere: how many seconds tests took in runs of which pytest's cache here knows nothing.
    """

    def __init__(self, measured_elsewhere: Mapping[str, float]) -> None:
        self._measured_elsewhere = measured_elsewhere
        self._channels: dict[str, WorkerChannel] = {}
        self._needs: dict[str, Needs] = {}
        self._scheduling: HostScheduling | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        worker = node.gateway.id
        self._channels[worker] = WorkerChannel(node, lambda message: self._receive(node, message))
        self._shared_id = run_id_of(node)

    def _receive(self, node: Any, message: Collected | Elsewhere) -> None:
        """In a thread of execnet's. Before the workers have collected, the controller's own thread does not look."""
        if isinstance(message, Collected):
            self._needs.update(message.needs)
            return
        call_in_controller(node.config, lambda: self._run_elsewhere(node.gateway.id, message), delay_s=0)

    def _run_elsewhere(self, worker: str, message: Elsewhere) -> None:
        if self._scheduling is not None:
            self._scheduling.run_elsewhere(worker, message.test, message.lost)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> HostScheduling:
        with quick_imports():  # here, while the workers start
            from .xdist_scheduling import HostScheduling

        self._scheduling = config.stash[STATUS_SOURCE] = HostScheduling(
            config, self._channels, self._needs, self._measured_elsewhere, shared_id=self._shared_id
        )
        run_events(config).on_start.append(self._scheduling.test_started)
        return self._scheduling

    def reported(self, report: pytest.TestReport) -> None:
        if self._scheduling is None:
            return
        self._scheduling.reported(report)
        if lost := getattr(report, LOST_HOSTS_ATTRIBUTE, None):
            self._scheduling.lose_hosts(lost)

    def pytest_sessionfinish(self) -> None:
        if self._scheduling is not None:
            self._scheduling.end()
