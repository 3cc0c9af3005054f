"""When the status of a run is published: once it is known to use hosts, or where a file was asked for."""

from __future__ import annotations

from typing import Final

import pytest

from ..markers.declarations import needs_hosts
from ..session.guard import guarded
from ..session.internals import quick_imports
from ..session.stash import SETTINGS
from .run_events import run_events

__all__ = ["FORKS_ATTRIBUTE", "publish_status"]

FORKS_ATTRIBUTE: Final = "propolis_forks"
"""An attribute of a report from a process that uses hosts: its name, and how many VMs it has forked so far."""


def publish_status(config: pytest.Config) -> None:
    """Have the status of the run of this process be published. What that takes is imported when it is needed."""
    settings = config.stash[SETTINGS]
    if settings.status is not None or settings.hosts is not None:
        _start(config)
    else:
        activation = _Activation(config)
        config.pluginmanager.register(activation, "propolis-status-activation")
        run_events(config).on_report.append(activation.reported)


def _start(config: pytest.Config) -> None:
    with guarded(config, "publishing the status of the run"):
        with quick_imports():
            from .status.reporter import StatusReporter

        if not config.pluginmanager.hasplugin("propolis-status"):
            config.pluginmanager.register(StatusReporter(config), "propolis-status")


class _Activation:
    """A plugin that waits for the first test that uses hosts."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if any(map(needs_hosts, session.items)):
            _start(self._config)

    def reported(self, report: pytest.TestReport) -> None:
        """In a controller, which collects nothing."""
        if hasattr(report, FORKS_ATTRIBUTE):
            _start(self._config)
