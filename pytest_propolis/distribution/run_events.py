"""The events of tests in the process that has the terminal: one plugin receives them for all others of this project.

A controller has thousands of these events per second, and pytest's call of one more plugin costs more than what most of
them do with an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import pytest

from ..session.guard import guarded

__all__ = ["VMS_ATTRIBUTE", "RunEvents", "run_events"]

VMS_ATTRIBUTE: Final = "propolis_host_used"
"""An attribute of a report: its process has used a host, so that there are VMs to be cleaned up. A report that passed
has no other attribute of the plugin without it."""

T = TypeVar("T")


class RunEvents:
    """A plugin that calls functions with the reports of tests, and with their beginnings and ends where that is wanted.

    :ivar on_report: called with each report but those that passed in a process that uses no hosts.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.on_report: list[Callable[[pytest.TestReport], None]] = []
        self._config = config
        self._ends: _Ends | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Before the terminal shows the report."""
        if report.outcome != "passed" or VMS_ATTRIBUTE in report.__dict__:
            _call(self._config, tuple(self.on_report), report)  # one of them may add others

    @property
    def on_start(self) -> list[Callable[[str], None]]:
        """Called with the node id of a test that starts."""
        return self._both_ends.on_start

    @property
    def on_finish(self) -> list[Callable[[str], None]]:
        """Called with the node id of a test that has ended."""
        return self._both_ends.on_finish

    @property
    def _both_ends(self) -> _Ends:
        if self._ends is None:
            self._ends = _Ends(self._config)
            self._config.pluginmanager.register(self._ends, "propolis-ends-of-tests")
        return self._ends


class _Ends:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.on_start: list[Callable[[str], None]] = []
        self.on_finish: list[Callable[[str], None]] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _call(self._config, self.on_start, nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        _call(self._config, self.on_finish, nodeid)


def _call(config: pytest.Config, listeners: Iterable[Callable[[T], None]], event: T) -> None:
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            with guarded(config, "following the run's tests"):
                raise


_RUN_EVENTS: Final[pytest.StashKey[RunEvents]] = pytest.StashKey()


def run_events(config: pytest.Config) -> RunEvents:
    """Return the events of this process."""
    events = config.stash.get(_RUN_EVENTS, None)
    if events is None:
        events = config.stash[_RUN_EVENTS] = RunEvents(config)
        config.pluginmanager.register(events, "propolis-run-events")
    return events
