"""Which tests' VMs stay for a person, when their fixtures end."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from ..errors import PropolisError

if TYPE_CHECKING:
    from ..agent_api.messages import KeptListed, ResourceIds
    from ..hosts.local import LocalHost
    from ..settings import Settings
    from ..vm.factory import VmFactory

__all__ = ["RETENTION_POLICY", "FactoryTeardown", "RetentionPolicy"]


class Factory(Protocol):
    """Has made what a test uses, and can leave it to others."""

    @property
    def group(self) -> str: ...

    async def aclose(self) -> None: ...

    async def set_aside(self) -> ResourceIds: ...

    async def keep(self, *, reason: str, ttl_s: float) -> KeptListed: ...


@dataclass(slots=True)
class RetentionPolicy:
    """What one pytest process knows of its failed tests, and has not yet decided to keep or to remove.

    A test can still fail while its fixtures are torn down, after its VMs' own. So the VMs of a test that has not failed
    are set aside, and the report of its teardown decides on them.

    :param pause: waits for a person, given the failed test and the factory.
    """

    settings: Settings
    pause: Callable[[str, VmFactory], Awaitable[None]] | None = None
    failures: list[str] = field(default_factory=list)
    _aside: list[tuple[LocalHost, ResourceIds]] = field(default_factory=list)

    def note(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """A phase of a test has ended. After its teardown nothing is left undecided."""
        if report.failed and "propolis" in getattr(item, "fixturenames", ()):
            self.failures.append(item.nodeid)
        if report.when == "teardown":
            while self._aside:
                # VMs come before the disks that they use.
                with contextlib.suppress(PropolisError):  # the agent is gone, and its VMs with it
                    self._settle(*self._aside.pop(0), keep=report.failed, reason=item.nodeid)

    def ending(self, host: LocalHost, test: str | None) -> FactoryTeardown:
        """How a factory that is opened now is to end.

        :param test: the test that it is for; None if it is for all that come while it is open.
        """
        return FactoryTeardown(self, host, test, len(self.failures))

    def set_aside(self, host: LocalHost, belongings: ResourceIds) -> None:
        self._aside.append((host, belongings))

    def _settle(self, host: LocalHost, belongings: ResourceIds, *, keep: bool, reason: str) -> None:
        from ..agent_api.messages import Keep

        if (agent := host.agent) is None:
            return
        if keep:
            agent.keep(Keep(belongings=belongings, reason=reason, ttl_s=self.settings.keep_ttl))
        else:
            agent.remove(belongings)


@dataclass(frozen=True, slots=True)
class FactoryTeardown:
    """The end of one factory: call it with the factory."""

    keeper: RetentionPolicy
    host: LocalHost
    test: str | None
    seen: int

    async def __call__(self, factory: VmFactory) -> None:
        """End a factory of VMs, after a pause for a person if their test has failed."""
        failed = self._failed()
        if failed and self.keeper.pause and factory.vms:
            await factory.hand_over()
            await self.keeper.pause(failed, factory)
        await self.end(factory, failed)

    async def of_disks(self, factory: Factory) -> None:
        """End a factory of what VMs use, after that of the VMs."""
        await self.end(factory, self._failed())

    async def end(self, factory: Factory, failed: str | None) -> None:
        settings = self.keeper.settings
        if settings.keep == "never":
            await factory.aclose()
        elif failed or settings.keep == "always":
            await factory.keep(reason=failed or self.test or factory.group, ttl_s=settings.keep_ttl)
        else:
            self.keeper.set_aside(self.host, await factory.set_aside())

    def _failed(self) -> str | None:
        """The first test of its own that has failed since the factory was opened."""
        return next((test for test in self.keeper.failures[self.seen :] if self.test in (None, test)), None)


RETENTION_POLICY: Final[pytest.StashKey[RetentionPolicy]] = pytest.StashKey()
"""Where a config keeps its process's `RetentionPolicy`, once a test has asked for VMs."""
