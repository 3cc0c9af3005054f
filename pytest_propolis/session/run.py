"""The run: what the fixtures of one pytest process share. A test gets it as the fixture ``propolis``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..settings import BootKind, Settings
from .end_of_run import HOST
from .progress import progress_printer
from .retention import RETENTION_POLICY, RetentionPolicy

if TYPE_CHECKING:
    from ..guests.registry import GuestRegistry
    from ..hosts.local import LocalHost
    from ..vm.crucible_disk import CrucibleDisk
    from ..vm.crucible_disk_factory import CrucibleDiskFactory
    from ..vm.factory import VmFactory
    from ..vm.vm import TestVm

__all__ = ["Run", "propolis"]


class Run:
    """One pytest process's share of a run: settings, guests, and the host that its VMs live on.

    Making it starts nothing. The host's agent starts with the first VM factory that is entered.
    """

    def __init__(self, config: pytest.Config, settings: Settings, *, log_dir: Path) -> None:
        self.settings = settings
        self.log_dir = log_dir
        self.shared_vms: list[TestVm] = []
        """VMs that belong to no single test."""
        self._config = config
        self._shared_groups = itertools.count(1)
        self._host: LocalHost | None = None

    @cached_property
    def guests(self) -> GuestRegistry:
        from ..guests.registry import GuestRegistry

        return GuestRegistry(
            itertools.chain.from_iterable(self._config.hook.pytest_propolis_guests(config=self._config))
        )

    @property
    def host(self) -> LocalHost:
        """This machine."""
        from ..hosts.local import LocalHost

        if self._host is None:
            self._host = LocalHost(self.settings, shared_id=_xdist_run_id(self._config))
            self._config.stash[HOST] = self._host
        return self._host

    @cached_property
    def keeper(self) -> RetentionPolicy:
        """Decides whose VMs stay after their test."""
        pause = None
        if self.settings.pause_on_failure and not hasattr(self._config, "workerinput"):
            from .pausing import pauser

            pause = pauser(self._config)
        self._config.stash[RETENTION_POLICY] = RetentionPolicy(self.settings, pause)
        return self._config.stash[RETENTION_POLICY]

    def vm_factory(
        self,
        group: str | None = None,
        *,
        test: str | None = None,
        made: Callable[[TestVm], None] | None = None,
        boot: BootKind | None = None,
    ) -> AbstractAsyncContextManager[VmFactory]:
        """A factory of VMs that live until its ``async with`` ends.

        For fixtures of a wider scope than one test::

            @pytest_asyncio.fixture(scope="module", loop_scope="module")
            async def test_vm(propolis):
                async with propolis.vm_factory() as factory:
                    yield await factory.start()

        :param group: names the directory of the VMs' logs; names of VMs are unique in it.
        :param test: the node id of the test that the VMs are for; None if they are for all that run meanwhile. With
            ``--propolis-keep=failed`` the VMs stay if one of these fails.
        :param boot: how its VMs come up, instead of what the settings say.
        """
        from ..vm.factory import VmFactory

        name = group or f"shared-{next(self._shared_groups)}"
        return VmFactory.on(
            self.host,
            settings=dataclasses.replace(self.settings, boot=boot or self.settings.boot),
            guests=self.guests,
            group=name,
            log_dir=self.log_dir / name,
            progress=progress_printer(self._config),
            ending=self.keeper.ending(self.host, test),
            made=partial(self._made, made or self.shared_vms.append),
        )

    def crucible_disk_factory(
        self,
        group: str | None = None,
        *,
        test: str | None = None,
        made: Callable[[CrucibleDisk], None] | None = None,
    ) -> AbstractAsyncContextManager[CrucibleDiskFactory]:
        """A factory of replicated disks that live until its ``async with`` ends: for fixtures of a wider scope.

        :param group: what they belong to, for people.
        :param test: as in `vm_factory`.
        """
        from ..vm.crucible_disk_factory import CrucibleDiskFactory

        return CrucibleDiskFactory.on(
            self.host,
            group=group or test or f"shared-{next(self._shared_groups)}",
            made=made or (lambda disk: None),
            ending=self.keeper.ending(self.host, test).of_disks,
        )

    def _made(self, remember: Callable[[TestVm], None], vm: TestVm) -> None:
        remember(vm)
        self._config.hook.pytest_propolis_vm_created(vm=vm, config=self._config)


@pytest.fixture(scope="session")
def propolis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run: settings, guests, host, and VM factories of any scope."""
    # The host is let go when the session ends (session/end_of_run.py). Here it would be too early: whether the last
    # test has failed, and its VMs are to stay, is known only when all fixtures have ended.
    settings = request.config.stash[SETTINGS]
    log_dir = settings.log_dir or tmp_path_factory.getbasetemp() / "propolis"
    return Run(request.config, settings, log_dir=log_dir)


SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
"""Where a config keeps the run's settings."""


def _xdist_run_id(config: pytest.Config) -> str | None:
    """What all workers of a run share: then they share an agent, too."""
    worker = getattr(config, "workerinput", None)
    return worker["testrunuid"] if worker else None
