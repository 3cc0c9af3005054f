"""Retention: decide which tests' VMs are kept for inspection when their fixtures end."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
import pytest

from ..errors import PropolisError
from .guard import guarded
from .stash import VMS

if TYPE_CHECKING:
    from ..agent_api.messages import ResourceIds
    from ..hosts.host import Host
    from ..settings import Settings
    from ..vm.factory import VmFactory

__all__ = ["FactoryTeardown", "RetentionPolicy"]


class Factory(Protocol):
    """A factory of resources that a test uses, which can keep them beyond its end."""

    @property
    def group(self) -> str:
        """The group to which it belongs."""

    async def aclose(self) -> None:
        """Remove its resources."""

    async def detach(self) -> list[tuple[Host, ResourceIds]]:
        """Detach its resources, and return them by host."""

    async def keep(self, *, reason: str, ttl_s: float) -> object:
        """Keep its resources for inspection."""


@dataclass(slots=True, eq=False)
class RetentionPolicy:
    """Decides which VMs of one pytest process outlive their factory: a plugin, registered once a test uses VMs.

    A test can still fail in the teardown of fixtures after that of its VMs, and a plugin that reruns failed tests
    decides so after the teardown. So with ``--propolis-keep=failed`` a factory's VMs are set aside when it ends, and
    kept or removed when all reports of the test have been logged.

    :param pause: waits for the user, given the failed test and the factory.
    """

    config: pytest.Config
    settings: Settings
    pause: Callable[[str, VmFactory], Awaitable[None]] | None = None
    _failures: list[str] = field(default_factory=list)
    _logged: list[str] = field(default_factory=list)
    """The failures that count: those of attempts that were not followed by another."""
    _detached: list[tuple[FactoryTeardown, Host, ResourceIds]] = field(default_factory=list)

    def note(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Record that a phase of a test has ended; whether its failure counts is not known yet."""
        if report.failed and ("propolis" in getattr(item, "fixturenames", ()) or VMS in item.stash):
            self._failures.append(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid in self._failures:
            self._logged.append(report.nodeid)

    def pytest_runtest_logfinish(self) -> None:
        with guarded(self.config, "removing the VMs of a test"):
            self._keep_or_remove_all(remove=True)

    def finish(self) -> None:
        """Keep resources of factories that ended with the session. Closing the session's host removes the rest."""
        self._keep_or_remove_all(remove=False)

    def ending(self, test: str | None) -> FactoryTeardown:
        """Return the teardown of a factory that is opened now.

        :param test: its test; None if all tests that run while it is open share it.
        """
        return FactoryTeardown(self, test, len(self._failures), len(self._logged))

    def add_detached(self, teardown: FactoryTeardown, detached: Iterable[tuple[Host, ResourceIds]]) -> None:
        self._detached += [(teardown, host, resources) for host, resources in detached]

    def _keep_or_remove_all(self, *, remove: bool) -> None:
        while self._detached:  # VMs are handled before the disks that they use
            with contextlib.suppress(PropolisError):  # the agent is gone, and its VMs with it
                self._keep_or_remove(*self._detached.pop(0), remove=remove)

    def _keep_or_remove(self, teardown: FactoryTeardown, host: Host, resources: ResourceIds, *, remove: bool) -> None:
        from ..agent_api.messages import Keep

        if (agent := host.agent) is None:
            return
        if reason := teardown.failure_of(self._logged[teardown.logged :]):
            agent.keep(Keep(resources=resources, reason=reason, ttl_s=self.settings.keep_ttl))
        elif remove:
            agent.remove(resources)


class FactoryTeardown(msgspec.Struct, frozen=True):
    """The teardown of one factory, called with the factory.

    :param seen: the number of failures noted when the factory was opened; ``logged`` likewise.
    """

    policy: RetentionPolicy
    test: str | None
    seen: int
    logged: int

    async def __call__(self, factory: VmFactory) -> None:
        """End a factory of VMs, after a pause for the user if their test has failed."""
        failed = self.failure_of(self.policy._failures[self.seen :])
        if failed and self.policy.pause and factory.vms:
            await factory.release_console()
            await self.policy.pause(failed, factory)
        await self.end(factory, failed)

    async def of_disks(self, factory: Factory) -> None:
        """End a factory of resources that VMs use, after the factory of the VMs."""
        await self.end(factory, self.failure_of(self.policy._failures[self.seen :]))

    async def end(self, factory: Factory, failed: str | None) -> None:
        settings = self.policy.settings
        if settings.keep == "never":
            await factory.aclose()
        elif settings.keep == "always":
            await factory.keep(reason=failed or self.test or factory.group, ttl_s=settings.keep_ttl)
        else:
            self.policy.add_detached(self, await factory.detach())

    def failure_of(self, failures: list[str]) -> str | None:
        """Return the first of these failed tests that used the factory."""
        return next((test for test in failures if self.test in (None, test)), None)
