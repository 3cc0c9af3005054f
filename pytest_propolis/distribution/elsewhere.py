"""The marker ``retry_elsewhere``: a test whose host is lost while it runs, runs again on another one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from ..session.internals import prepare_again, run_phases, tear_down_everything
from ..session.stash import HOSTS, PLACEMENTS
from .run_events import run_events

__all__ = ["LostHosts", "RetryElsewhere", "RetrySummary"]

RERUN: Final = "rerun"
"""The outcome of a run of a test that does not count, as pytest-rerunfailures calls it."""

MOST_RUNS: Final = 3
"""How often a test is run: where one host after the other is lost, something else is wrong."""


class LostHosts:
    """Which hosts are lost that a test had to do with.

    That a host was lost is remembered by a process until it uses the host again; it says nothing of later tests.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._before: frozenset[str] = frozenset()

    def test_begins(self) -> None:
        self._before = self._lost()

    def of(self, test: str) -> frozenset[str]:
        """Return the hosts that were lost since the test began, and those of it that are lost."""
        lost = self._lost()
        return (lost - self._before) | (lost & frozenset(self._config.stash.get(PLACEMENTS, {}).get(test, ())))

    def _lost(self) -> frozenset[str]:
        return frozenset(host.name for host in self._config.stash.get(HOSTS, ()) if host.is_lost)


class RetryElsewhere:
    """A plugin of each process that runs tests.

    :param elsewhere: called with a test and its lost hosts, has other hosts given to it; returns whether there are any.
    """

    def __init__(self, config: pytest.Config, elsewhere: Callable[[str, frozenset[str]], bool]) -> None:
        self._lost = LostHosts(config)
        self._elsewhere = elsewhere

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if item.get_closest_marker("retry_elsewhere") is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[pytest.TestReport]:
        for number in range(1, MOST_RUNS + 1):
            self._lost.test_begins()
            reports = run_phases(item, nextitem)
            failed = next((report for report in reports if report.failed), None)
            lost = self._lost.of(item.nodeid)
            if failed is None or not lost or number == MOST_RUNS or not self._elsewhere(item.nodeid, lost):
                yield from reports
                return
            failed.outcome = RERUN  # type: ignore[assignment]
            yield failed
            with contextlib.suppress(Exception):  # what is left of fixtures of wider scopes is on the lost host, too
                tear_down_everything(item.session)
            prepare_again(item)


class RetrySummary:
    """A plugin of the process with the terminal, from the first test on that runs again: reports which did."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._lines: list[str] = []
        run_events(config).on_report.append(self._reported)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
        return (RERUN, "R", "RERUN") if str(report.outcome) == RERUN else None

    def _reported(self, report: pytest.TestReport) -> None:
        if str(report.outcome) != RERUN:
            return
        if not self._config.pluginmanager.is_registered(self):
            self._config.pluginmanager.register(self, "propolis-retry-summary")
        if "retry_elsewhere" in report.keywords:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.partition("\n")[0] if crash else "its host was lost"
            self._lines.append(f"propolis: {report.nodeid} has run again elsewhere: {reason}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._lines:
            terminalreporter.write_line(line)
