"""The run: state shared by the fixtures of one pytest process. A test gets it as the fixture ``propolis``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ..settings import BootKind, Settings
from .internals import is_worker, quick_imports, shared_run_id, worker_name
from .kernel_watch import KernelWatch
from .progress import progress_printer
from .stash import FORKS, HOSTS, INTERRUPTION, KERNEL_WATCH, PLACEMENTS, RETENTION_POLICY, RUNNING_TEST

if TYPE_CHECKING:
    from ..coordination.group import NodeGroup
    from ..guests.registry import GuestRegistry
    from ..hosts.agent_clients.asynchronous import AsyncAgentClient
    from ..hosts.host import Host
    from ..storage.artifacts import Artifact
    from ..storage.catalogs.catalog import Catalog
    from ..sync.event_loop_thread import EventLoopThread
    from ..sync.proxy import SyncProxy
    from ..vm.disks.crucible_disk import CrucibleDisk
    from ..vm.disks.crucible_disk_factory import CrucibleDiskFactory
    from ..vm.disks.image_fork_factory import ImageForkFactory
    from ..vm.factory import VmFactory
    from ..vm.metrics.metrics import Metrics
    from ..vm.vm import TestVm
    from .retention import RetentionPolicy

__all__ = ["Run", "import_factories"]


class Run:
    """One pytest process's share of a run: settings, guests, and the hosts of its VMs.

    Creating it starts nothing. The host's agent starts with the first VM factory that is entered.
    """

    def __init__(self, config: pytest.Config, settings: Settings, *, log_dir: Path) -> None:
        self.settings = settings
        self.log_dir = log_dir
        self._config = config
        self._shared_groups = itertools.count(1)
        self._loop_thread: EventLoopThread | None = None
        self._is_said_without_zfs = False

    @cached_property
    def guests(self) -> GuestRegistry:
        from ..guests.registry import GuestRegistry

        return GuestRegistry(
            itertools.chain.from_iterable(self._config.hook.pytest_propolis_guests(config=self._config))
        )

    @cached_property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts of the inventory, or this machine if there is no inventory."""
        with quick_imports():
            from ..hosts.run_hosts import open_hosts

        hosts = open_hosts(self.settings, shared_id=shared_run_id(self._config), meanwhile=import_factories)
        self._config.stash[HOSTS] = hosts
        self._config.stash[INTERRUPTION].arm()
        return hosts

    async def start_agent(self) -> None:
        """Start the agent of this machine, unless it is up or there is an inventory.

        A factory does so, too; but what it imports is imported here while the agent starts.
        """
        if self.settings.hosts is None and not self.host.was_up:
            await (await self.host.client()).aclose()

    @cached_property
    def _coordination_id(self) -> str:
        from ..hosts.run_hosts import coordination_id

        return coordination_id(shared_run_id(self._config))

    @cached_property
    def coordination_host(self) -> Host:
        """The host on this machine whose agent serves the key-value store of the run's nodes."""
        from ..hosts.run_hosts import coordination_host

        host = coordination_host(self.settings, self.hosts, run=self._coordination_id)
        if host not in self.hosts:
            self._config.stash[HOSTS] = (*self.hosts, host)
        return host

    @property
    def placed(self) -> tuple[Host, ...]:
        """The hosts of the current test: those that the controller assigned to it, else all.

        Without a controller that places tests, workers of pytest-xdist use a different first host in turn, and lost
        hosts come last.
        """
        hosts, test = self.hosts, self._config.stash.get(RUNNING_TEST, "")
        if names := self._config.stash.get(PLACEMENTS, {}).get(test):
            by_name = {host.name: host for host in hosts}
            return tuple(by_name[name] for name in names)
        number = int((worker_name(self._config) or "gw0").removeprefix("gw")) % len(hosts)
        return tuple(sorted((*hosts[number:], *hosts[:number]), key=lambda host: host.is_lost))

    @property
    def host(self) -> Host:
        """The default host of the test's VMs."""
        return self.placed[0]

    @cached_property
    def policy(self) -> RetentionPolicy:
        """The retention policy: decides which tests' VMs are kept."""
        with quick_imports():
            from .retention import RetentionPolicy

        pause = None
        if self.settings.pause_on_failure and not is_worker(self._config):
            from .pausing import pauser

            pause = pauser(self._config)
        policy = self._config.stash[RETENTION_POLICY] = RetentionPolicy(self._config, self.settings, pause)
        self._config.pluginmanager.register(policy, "propolis-retention")
        return policy

    @cached_property
    def _kernel_watch(self) -> KernelWatch:
        watch = self._config.stash[KERNEL_WATCH] = KernelWatch(self.settings.fail_on)
        self._config.pluginmanager.register(watch, "propolis-kernel-watch")
        return watch

    def vm_factory(
        self,
        group: str | None = None,
        *,
        test: str | None = None,
        made: Callable[[TestVm], None] | None = None,
        boot: BootKind | None = None,
        guest: str | None = None,
        metrics: Metrics | None = None,
    ) -> AbstractAsyncContextManager[VmFactory]:
        """Return a factory of VMs that live until its ``async with`` ends.

        For fixtures of a wider scope than one test::

            @pytest_asyncio.fixture(scope="module", loop_scope="module")
            async def test_vm(propolis):
                async with propolis.vm_factory() as factory:
                    yield await factory.start()

        :param group: names the directory of the VMs' logs; names of VMs are unique in it.
        :param test: the node id of the test that the VMs are for; None if they are for all that run meanwhile. With
            ``--propolis-keep=failed`` the VMs stay if one of these fails.
        :param boot: how its VMs boot, instead of the setting.
        :param guest: their default guest, instead of that of the settings.
        :param metrics: the collector of their metrics; None for no metrics.
        """
        with quick_imports():
            from ..vm.factory import VmFactory

        name = group or f"shared-{next(self._shared_groups)}"
        return VmFactory.on(
            self.placed,
            settings=self.settings.replaced(boot=boot or self.settings.boot, guest=guest or self.settings.guest),
            guests=self.guests,
            group=name,
            log_dir=self.log_dir / name,
            progress=progress_printer(self._config),
            teardown=self.policy.ending(test),
            made=partial(self._on_vm_created, made),
            artifact=lambda name: self.catalog.find(name),
            metric_addr=metrics.address if metrics else None,
        )

    def metrics(self) -> AbstractAsyncContextManager[Metrics]:
        """Return a collector of metrics, open until its ``async with`` ends, for wider scopes: `vm_factory`."""
        from ..vm.metrics.metrics import Metrics

        return Metrics.opened()

    def node_group(self, name: str | None = None) -> AbstractAsyncContextManager[NodeGroup]:
        """Return a group of coordinating nodes, open until its ``async with`` ends, for fixtures of a wider scope.

        :param name: names it in the run. Where several processes of the run open a group of the same name, it is one
            group, and it ends with the first that has opened it. By default it is one of its own.
        """
        from ..coordination.run_group import opened_group

        return opened_group(
            self.settings.coordination,
            name or f"group-{os.urandom(8).hex()}",
            run=self._coordination_id,
            host=lambda: self.coordination_host,
        )

    @cached_property
    def catalog(self) -> Catalog:
        """The artifacts of the files that ``--propolis-artifacts`` names.

        :raises ArtifactError: when a file cannot be read or is wrong.
        """
        from ..storage.catalogs.catalog import read_catalogs

        return read_catalogs(self.settings.artifacts or ())

    def artifact(self, name: str) -> Artifact:
        """Return an artifact of a catalog without fetching it.

        :raises ConfigError: when there is none of this name.
        :raises ArtifactError: when a catalog cannot be read or is wrong.
        """
        return self.catalog.get(name)

    def image_fork_factory(
        self, *, guest: str | None = None, zfs_only: bool = False
    ) -> AbstractAsyncContextManager[ImageForkFactory]:
        """Return a factory of writable forks of artifacts, which live until its ``async with`` ends.

        :param guest: the guest whose disk is forked by default; if None, that of the settings.
        :param zfs_only: whether to require ZFS; otherwise the best provider that the host supports is used.
        """
        from ..vm.disks.image_fork_factory import ImageForkFactory

        return ImageForkFactory(
            self.host,
            guests=self.guests,
            catalog=self.catalog,
            default=guest or self.settings.guest,
            boot_timeout_s=self.settings.boot_timeout,
            progress=progress_printer(self._config),
            zfs_only=zfs_only,
            fallback=self._say_without_zfs,
        ).opened()

    def _say_without_zfs(self, line: str) -> None:
        if not self._is_said_without_zfs:
            self._is_said_without_zfs = True
            progress_printer(self._config)(line)

    def crucible_disk_factory(
        self,
        group: str | None = None,
        *,
        test: str | None = None,
        made: Callable[[CrucibleDisk], None] | None = None,
    ) -> AbstractAsyncContextManager[CrucibleDiskFactory]:
        """Return a factory of replicated disks that live until its ``async with`` ends, for fixtures of a wider scope.

        :param group: the name of their owner, for users.
        :param test: as in `vm_factory`.
        """
        from ..vm.disks.crucible_disk_factory import CrucibleDiskFactory
        from ..vm.disks.images import ImageFinder

        def images(agent: AsyncAgentClient) -> ImageFinder:
            return ImageFinder(
                self.host,
                agent,
                guests=self.guests,
                artifact=self.catalog.find,
                boot_timeout_s=self.settings.boot_timeout,
                progress=progress_printer(self._config),
            )

        return CrucibleDiskFactory.on(
            self.host,
            group=group or test or f"shared-{next(self._shared_groups)}",
            made=made or (lambda disk: None),
            images=images,
            downstairs=self.settings.crucible_downstairs,
            teardown=self.policy.ending(test).of_disks,
        )

    def blocking(self, opened: AbstractAsyncContextManager[Any]) -> SyncProxy:
        """Wrap an object for synchronous code: ``with propolis.blocking(propolis.vm_factory()) as factory``.

        Its methods, and those of what it makes, are called without ``await``; they run in the session's one event loop
        thread. For fixtures of a wider scope than one test, as in unittest::

            @pytest.fixture(scope="class")
            def vm(propolis):
                with propolis.blocking(propolis.vm_factory()) as factory:
                    yield factory.start()

        :param opened: a factory or a group, as a method of this object returns it.
        """
        from ..sync.event_loop_thread import EventLoopThread
        from ..sync.proxy import SyncProxy

        if self._loop_thread is None:
            self._loop_thread = EventLoopThread()
        return SyncProxy(opened, self._loop_thread)

    def close_loop_thread(self) -> None:
        """End the thread of `blocking`. Idempotent."""
        if self._loop_thread is not None:
            self._loop_thread.close()
            self._loop_thread = None

    def _on_vm_created(self, remember: Callable[[TestVm], None] | None, vm: TestVm) -> None:
        if remember:
            remember(vm)
        self._kernel_watch.add(vm.kernel_failures)
        self._config.stash[FORKS] = self._config.stash.get(FORKS, 0) + (vm.boot_kind == "warm")
        self._config.hook.pytest_propolis_vm_created(vm=vm, config=self._config)


def import_factories() -> None:
    """Import what a test with VMs needs."""
    with quick_imports():
        from ..vm import factory  # noqa: F401
