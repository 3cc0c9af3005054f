"""The keys of this plugin's data in pytest's stashes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from ..console.kernel.ends import UnexpectedEnd
    from ..console.kernel.failures import KernelFailure
    from ..hosts.host import Host
    from ..settings import Settings
    from ..vm.disks.crucible_disk import CrucibleDisk
    from ..vm.vm import TestVm
    from .guard import Guard
    from .kernel_watch import KernelWatch
    from .retention import RetentionPolicy
    from .run import Run
    from .signals import Interruption

__all__ = [
    "CRUCIBLE_DISKS",
    "FAILURE",
    "FORKS",
    "GUARD",
    "HOSTS",
    "INTERRUPTION",
    "KERNEL_FAILURES",
    "KERNEL_WATCH",
    "PLACEMENTS",
    "RETENTION_POLICY",
    "RUN",
    "RUNNING_TEST",
    "SETTINGS",
    "VMS",
]

CRUCIBLE_DISKS: Final[pytest.StashKey[list[CrucibleDisk]]] = pytest.StashKey()
"""In a test's item: the replicated disks that were created for it."""

FAILURE: Final[pytest.StashKey[str]] = pytest.StashKey()
"""In a test's item: how it failed, in one line."""
FORKS: Final[pytest.StashKey[int]] = pytest.StashKey()
"""In a config: how many VMs of its process were forked from templates so far."""

GUARD: Final[pytest.StashKey[Guard]] = pytest.StashKey()
"""In a config: the guard that keeps an error of this plugin from ending the session."""

HOSTS: Final[pytest.StashKey[tuple[Host, ...]]] = pytest.StashKey()
"""In a config: the hosts of its process, once a test has asked for VMs."""

INTERRUPTION: Final[pytest.StashKey[Interruption]] = pytest.StashKey()
"""In a config: the handlers of signals that end its run."""

KERNEL_FAILURES: Final[pytest.StashKey[list[tuple[str, KernelFailure | UnexpectedEnd]]]] = pytest.StashKey()
"""In a test's item: unreported kernel failures, by VM."""

KERNEL_WATCH: Final[pytest.StashKey[KernelWatch]] = pytest.StashKey()
"""In a config: the watch over the kernels of its VMs, once there is one."""

PLACEMENTS: Final[pytest.StashKey[dict[str, tuple[str, ...]]]] = pytest.StashKey()
"""In a worker's config: the names of the hosts that the controller assigned to tests, by node id."""

RETENTION_POLICY: Final[pytest.StashKey[RetentionPolicy]] = pytest.StashKey()
"""In a config: the retention policy, once a test has requested VMs."""

RUN: Final[pytest.StashKey[Run]] = pytest.StashKey()
"""In a config: its process's run, however often the session's fixtures are set up."""

RUNNING_TEST: Final[pytest.StashKey[str]] = pytest.StashKey()
"""In a config: the node id of the test that runs."""

SETTINGS: Final[pytest.StashKey[Settings]] = pytest.StashKey()
"""In a config: the run's settings."""

VMS: Final[pytest.StashKey[list[TestVm]]] = pytest.StashKey()
"""In a test's item: the VMs that were created for it."""
