"""A plugin of the process that has the terminal: publishes the status of its run while tests run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec
import pytest

from ...ledger.identity import ProcessIdentity
from ...session.guard import guarded
from ...session.internals import call_in_controller, is_controller
from ...session.progress import line_printer
from ...session.stash import SETTINGS
from ..run_events import run_events
from ..status_activation import FORKS_ATTRIBUTE
from .live_files import LiveFile
from .snapshot import RunningTest, Snapshot
from .source import STATUS_SOURCE, OwnProcess, StatusSource

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["StatusReporter", "status_line"]

PERIOD_S: Final = 1.0
"""How often the status is published at most."""

LINE_PERIOD_S: Final = 30.0
"""How often the terminal shows a line of it."""

RATE_S: Final = 10.0
"""Over how many seconds the forks per second are counted."""


class StatusReporter:
    """Follows pytest's own events: what has begun, and what has ended.

    :param config: of the process that has the terminal; of a run that uses hosts, or is to write its status to a file.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = config.stash[SETTINGS].status
        self._stream: IO[bytes] | None = None
        self._live = LiveFile()
        self._identity = ProcessIdentity.current().facts()
        self._began_s = time.time()
        self._started: dict[str, float] = {}
        self._finished: set[str] = set()
        self._failed: set[str] = set()
        self._forks: dict[str, int] = {}
        self._fork_times: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._source: StatusSource = OwnProcess(config)
        self._published_s = 0.0
        self._shown_s = time.monotonic()
        self._ticking = False
        self._ended = False
        events = run_events(config)
        events.on_start.append(self._begin)
        events.on_report.append(self._reported)
        events.on_finish.append(self._end)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        if self._file is not None and not session.config.option.collectonly:
            self._stream = _opened(self._file)

    def _begin(self, test: str) -> None:
        self._started[test] = time.time()
        self._finished.discard(test)  # it runs again
        if not self._ticking:
            self._happened()

    def _reported(self, report: pytest.TestReport) -> None:
        if found := getattr(report, FORKS_ATTRIBUTE, None):
            process, forks = found
            self._forks[process] = forks
        if report.failed:
            self._failed.add(report.nodeid)
        if str(report.when) == "???":  # its worker has crashed
            self._end(report.nodeid)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        try:
            return (yield)
        finally:
            self._ended = True
            with guarded(session.config, "publishing the status of the run"):
                self._started.clear()
                self._publish("ended")
                self._live.remove()
                if self._stream is not None:
                    self._stream.close()

    def _end(self, test: str) -> None:
        self._started.pop(test, None)
        self._finished.add(test)
        if not self._ticking:
            self._happened()

    def _happened(self) -> None:
        """Publish the status, if that was not done just now, and see that it will be while nothing happens."""
        if time.monotonic() >= self._published_s + PERIOD_S:
            with guarded(self._config, "publishing the status of the run"):
                self._publish("running")
        if not self._ticking and is_controller(self._config):
            self._ticking = call_in_controller(self._config, self._tick, delay_s=PERIOD_S)

    def _tick(self) -> None:
        self._ticking = False
        if not self._ended and self._started:
            self._happened()

    def _publish(self, state: Literal["running", "ended"]) -> None:
        self._published_s = time.monotonic()
        snapshot = self._snapshot(state)
        text = msgspec.json.encode(snapshot)
        self._live.write(text)
        if self._stream is not None:
            self._stream.write(text + b"\n")
            self._stream.flush()
        if state == "running" and self._published_s >= self._shown_s + LINE_PERIOD_S:
            self._shown_s = self._published_s
            if self._config.get_verbosity() >= 0:
                line_printer(self._config)(f"propolis: {status_line(snapshot)}")

    def _snapshot(self, state: Literal["running", "ended"]) -> Snapshot:
        source = self._config.stash.get(STATUS_SOURCE, self._source)
        forks = sum(self._forks.values())
        return Snapshot(
            run=f"{self._identity['pid']}",
            process=self._identity,
            directory=str(self._config.invocation_params.dir),
            at=time.time(),
            since=self._began_s,
            state=state,
            tests=source.total(),
            finished=len(self._finished),
            failed=len(self._failed),
            running=tuple(_running(source, test, since) for test, since in self._started.items()),
            waiting=source.waiting(),
            hosts=source.hosts(len(self._started)),
            forks=forks,
            forks_per_s=self._rate(forks),
        )

    def _rate(self, forks: int) -> float:
        now_s = time.monotonic()
        self._fork_times.append((now_s, forks))
        while len(self._fork_times) > 2 and self._fork_times[0][0] < now_s - RATE_S:
            self._fork_times.popleft()
        since_s, before = self._fork_times[0]
        return round((forks - before) / max(now_s - since_s, PERIOD_S), 2)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except OSError as error:
        raise pytest.UsageError(f"--propolis-status {path} cannot be written: {error.strerror}") from None


def _running(source: StatusSource, test: str, since_s: float) -> RunningTest:
    worker, hosts = source.place(test)
    return RunningTest(test=test, worker=worker, hosts=hosts, since=since_s)


def status_line(snapshot: Snapshot) -> str:
    """Return a status as one line for a person."""
    up = [host for host in snapshot.hosts if host.state == "up"]
    parts = [
        f"{snapshot.finished} of {snapshot.tests} tests have run"
        if snapshot.tests
        else f"{snapshot.finished} tests ran",
        f"{snapshot.failed} failed" if snapshot.failed else "",
        f"{len(snapshot.running)} run on {_number(len(up), 'host')}",
        f"{sum(host.used for host in up)} of {sum(host.slots for host in up)} slots used",
        f"{_number(sum(len(host.making) for host in up), 'template')} being made" if any(h.making for h in up) else "",
        f"lost: {', '.join(h.name for h in snapshot.hosts if h.state == 'lost')}"
        if len(up) < len(snapshot.hosts)
        else "",
        f"{snapshot.forks_per_s:.1f} forks/s",
    ]
    return ", ".join(part for part in parts if part)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
