"""The channel between xdist's controller and one of its workers: needs go one way, placements the other.

Node ids stay untouched, so that IDEs, ``--lf`` and JUnit see the same names with and without ``-n``. A placement is
sent just before the command by which the worker starts the test, over the same connection, so it is there in time.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final

import msgspec
import pytest

from ..session.internals import open_channel, worker_count, worker_input
from ..session.stash import PLACEMENTS, SETTINGS
from .elsewhere import LostHosts, RetryElsewhere
from .scheduling.needs import Needs

__all__ = ["LOST_HOSTS_ATTRIBUTE", "Collected", "Elsewhere", "WorkerChannel", "WorkerEnd", "needs_of"]

CHANNEL: Final = "propolis_channel"
LOST_HOSTS_ATTRIBUTE: Final = "propolis_lost_hosts"
"""An attribute of a worker's report: the names of hosts that it cannot reach any more."""


class Collected(msgspec.Struct, frozen=True, tag="collected"):
    """From a worker: what its tests need, by node id. Tests that need no host are not in it."""

    needs: dict[str, Needs]


class Elsewhere(msgspec.Struct, frozen=True, tag="elsewhere"):
    """From a worker: a test whose hosts were lost is to run again; the worker waits for a placement."""

    test: str
    lost: list[str]


class WorkerChannel:
    """The controller's end.

    :param node: the worker; it has not been started yet.
    :param receive: called with what the worker sends, in a thread of execnet's.
    """

    def __init__(self, node: Any, receive: Callable[[Collected | Elsewhere], None]) -> None:
        self._channel = open_channel(node, CHANNEL)
        self._channel.setcallback(lambda data: receive(msgspec.json.decode(data, type=Collected | Elsewhere)))

    def place(self, placements: Mapping[str, Iterable[str]]) -> None:
        """Tell the worker on which hosts it runs tests that it is about to start, or to run again."""
        self._channel.send(msgspec.json.encode(placements))


class WorkerEnd:
    """A plugin of the worker's: reports the needs of the collected tests, and learns where each test runs."""

    def __init__(self, config: pytest.Config) -> None:
        self._channel, self._workers = worker_input(config)[CHANNEL], worker_count(config)
        self._placements: dict[str, tuple[str, ...]] = {}
        self._again: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
        self._awaited = ""
        self._lost = LostHosts(config)
        config.stash[PLACEMENTS] = self._placements
        self._channel.setcallback(self._receive, endmarker=None)
        config.pluginmanager.register(RetryElsewhere(config, self._elsewhere), "propolis-elsewhere")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None]:
        """Before xdist reports to the controller that the collection is complete, and after that.

        If each worker will probably run a test with VMs, it imports what that takes while the controller starts agents.
        """
        needs = {item.nodeid: needs_of(item) for item in session.items}
        needs = {test: need for test, need in needs.items() if need.hosts}
        self._send(Collected(needs))
        yield
        if len(needs) >= self._workers:
            from ..session.run import import_factories

            import_factories()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._lost.test_begins()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let the controller know of hosts that are lost: xdist sends a report's attributes along."""
        report = yield
        if report.failed and (lost := self._lost.of(item.nodeid)):
            setattr(report, LOST_HOSTS_ATTRIBUTE, sorted(lost))
        return report

    def _elsewhere(self, test: str, lost: frozenset[str]) -> bool:
        """Wait until the controller has other hosts for a test, or none."""
        self._awaited = test
        self._send(Elsewhere(test, sorted(lost)))
        return bool(self._again.get())  # the channel ends with the controller

    def _send(self, message: Collected | Elsewhere) -> None:
        self._channel.send(msgspec.json.encode(message))

    def _receive(self, data: bytes | None) -> None:
        if data is None:
            self._again.put(())
            return
        placements = msgspec.json.decode(data, type=dict[str, tuple[str, ...]])
        self._placements |= placements
        if self._awaited in placements:
            awaited, self._awaited = self._awaited, ""
            self._again.put(placements[awaited])


def needs_of(item: pytest.Item) -> Needs:
    """Return what a test holds of its hosts while it runs."""
    if "propolis" not in getattr(item, "fixturenames", ()):
        return Needs(hosts=0)
    from ..markers.requirements import requirements_of  # here, because the controller needs none of it

    settings, required = item.config.stash[SETTINGS], requirements_of(item)
    boots = settings.boot == "cold" or item.get_closest_marker("cold_boot") is not None
    return Needs(
        guest=None if boots else required.guest or settings.guest,
        memory_mib=required.memory_mib or settings.memory_mib,
        cpus=required.cpus or settings.cpus,
        hosts=required.hosts,
        labels=required.labels,
    )
