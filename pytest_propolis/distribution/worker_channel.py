"""The channel between xdist's controller and one of its workers: needs go one way, placements the other.

Node ids stay untouched, so that IDEs, ``--lf`` and JUnit see the same names with and without ``-n``. A placement is
sent just before the command by which the worker starts the test, over the same connection, so it is there in time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final

import msgspec
import pytest

from ..markers.requirements import requirements_of
from ..session.stash import HOSTS, PLACEMENTS, SETTINGS
from .scheduling.needs import Needs

__all__ = ["LOST_HOSTS_ATTRIBUTE", "WorkerChannel", "WorkerEnd", "needs_of"]

CHANNEL: Final = "propolis_channel"
LOST_HOSTS_ATTRIBUTE: Final = "propolis_lost_hosts"
"""An attribute of a worker's report: the names of hosts that it cannot reach any more."""

_Needs = dict[str, dict[str, Any]]


class WorkerChannel:
    """The controller's end.

    :param node: the worker; it has not been started yet.
    :param receive: called with the needs of the worker's tests, in a thread of execnet's.
    """

    def __init__(self, node: Any, receive: Callable[[Mapping[str, Needs]], None]) -> None:
        self._channel = node.gateway.newchannel()
        node.workerinput[CHANNEL] = self._channel
        self._channel.setcallback(lambda data: receive(_decoded(data)))

    def place(self, placements: Mapping[str, Iterable[str]]) -> None:
        """Tell the worker on which hosts it runs tests that it is about to start."""
        self._channel.send(msgspec.json.encode(placements))


class WorkerEnd:
    """A plugin of the worker's: tells the needs of what it has collected, and learns where each test runs."""

    def __init__(self, config: pytest.Config) -> None:
        self._channel = config.workerinput[CHANNEL]  # type: ignore[attr-defined]
        self._placements: dict[str, tuple[str, ...]] = {}
        config.stash[PLACEMENTS] = self._placements
        self._channel.setcallback(self._receive)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Before xdist tells the controller that the collection is complete."""
        self._channel.send(msgspec.json.encode({item.nodeid: needs_of(item) for item in session.items}))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let the controller know of hosts that are lost: xdist sends a report's attributes along."""
        report = yield
        if lost := [host.name for host in item.config.stash.get(HOSTS, ()) if host.is_lost]:
            setattr(report, LOST_HOSTS_ATTRIBUTE, lost)
        return report

    def _receive(self, data: bytes) -> None:
        self._placements |= msgspec.json.decode(data, type=dict[str, tuple[str, ...]])


def needs_of(item: pytest.Item) -> Needs:
    """Return what a test holds of its hosts while it runs."""
    if "propolis" not in getattr(item, "fixturenames", ()):
        return Needs(hosts=0)
    settings, required = item.config.stash[SETTINGS], requirements_of(item)
    return Needs(
        guest=required.guest or settings.guest,
        memory_mib=required.memory_mib or settings.memory_mib,
        cpus=required.cpus or settings.cpus,
        hosts=required.hosts,
        labels=required.labels,
    )


def _decoded(data: bytes) -> Mapping[str, Needs]:
    return msgspec.json.decode(data, type=dict[str, Needs])
