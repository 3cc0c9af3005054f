"""The interface between a controller and a scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .decision import Decision
from .host import HostSpec, HostState
from .item import Item
from .waiting import Waiting

__all__ = ["Scheduler"]


class Scheduler(Protocol):
    """Decides which test runs where and when, and where templates are made.

    It does no I/O and has no clock: calls report the events, and `decide` the time. The same calls have the
    same answers. Times are in s, of any monotonic clock.
    """

    def tests_known(self, items: Sequence[Item]) -> None:
        """Let it schedule these tests, whose ids it does not know yet."""

    def host_joined(self, host: HostSpec) -> None:
        """Let it use a host: a new one, or one that was lost, with the templates that it has now."""

    def host_lost(self, name: str) -> tuple[str, ...]:
        """Let it use a host no more.

        :returns: the tests that run there. They count as running until `test_lost` or `test_finished` says otherwise.
        """

    def worker_ready(self, worker: str, *, own_host: str | None = None) -> None:
        """Let it use a new worker.

        :param own_host: the host that the worker runs on itself, whose tests it is given before those of others.
        """

    def worker_lost(self, worker: str, *, again: bool = False) -> tuple[str, ...]:
        """Let it use a worker no more. What the worker held but had not started is scheduled anew.

        :param again: whether the test that it ran is to run again.
        :returns: the id of the test that it ran, if it ran one.
        """

    def test_started(self, worker: str, test: str, now_s: float) -> None:
        """Let it know that a test has begun, if that is later than its start was decided."""

    def test_finished(self, worker: str, test: str, duration_s: float) -> None:
        """Let it know that a test has run, well or badly. The last of a batch frees its hosts."""

    def test_lost(self, worker: str, *, again: bool = True) -> tuple[str, ...]:
        """Let it know that what a worker runs has ended without a result, though the worker lives.

        The tests behind it in its batch are scheduled anew.

        :param again: whether the test itself is to run again.
        :returns: the id of the test.
        """

    def hosts_lost_by(self, worker: str) -> None:
        """Let it know that what a worker runs is to run again on other hosts; until `Relocate` it holds none."""

    def run_again(self, test: str) -> None:
        """Let it schedule a test once more that counts as having run."""

    def give_up(self, test: str) -> bool:
        """Let a test start without any host, so that it can say why it has none: no host that is left can run it, say.

        :returns: False if it does not wait, but runs, has run, or has hosts kept for it.
        """

    def template_made(self, host: str, guest: str) -> None:
        """Let it know that a template is there, or that it cannot be made and tests there boot without one."""

    def decide(self, now_s: float) -> list[Decision]:
        """Return what is to be done now. The scheduler takes it as done.

        To be called after events, and once a second or so while tests wait.
        """

    def hosts(self) -> Sequence[HostState]:
        """Return all hosts, also those that were lost, with what is in use of each: to be read only."""

    def waiting(self) -> list[Waiting]:
        """Return what waits, and why, for a person."""

    def why_waiting(self, test: str) -> str:
        """Say in a sentence why a test has not started, for a person."""
