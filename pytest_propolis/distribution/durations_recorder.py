"""A plugin of the process that has the terminal: writes how long its tests took into a file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from ..session.guard import guarded
from .durations_file import durations_text

__all__ = ["DurationsRecorder"]


class DurationsRecorder:
    """Adds up the phases of each test that ran.

    :param path: the file, which is written when the session ends; what it held before is lost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._durations: dict[str, float] = defaultdict(float)
        self._skipped: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._durations.pop(nodeid, None)  # it runs again

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._durations[report.nodeid] += report.duration
        if report.when == "setup" and report.skipped:
            self._skipped.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        measured = {test: seconds for test, seconds in self._durations.items() if test not in self._skipped}
        with guarded(session.config, f"writing the durations to {self._path}"):
            self._path.write_text(durations_text(measured))
