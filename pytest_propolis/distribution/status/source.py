"""Where the status of a run comes from: its scheduler, or what is known without one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from ...hosts.inventory.capacity import cpus_of, memory_mib_of, slots_of
from ...session.internals import number_of_tests, quick_imports
from .snapshot import HostStatus, TemplateStatus, WaitingTests

if TYPE_CHECKING:
    from ...hosts.host import HostSpec
    from ..scheduling.host import HostState

__all__ = ["STATUS_SOURCE", "OwnProcess", "StatusSource", "host_status"]


class StatusSource(Protocol):
    """What knows where tests run."""

    def total(self) -> int:
        """How many tests there are; 0 while that is not known."""

    def place(self, test: str) -> tuple[str, tuple[str, ...]]:
        """Return the worker and the hosts of a test that runs; empty where they are not known."""

    def waiting(self) -> tuple[WaitingTests, ...]:
        """Return the tests that wait, by reason."""

    def hosts(self, running: int) -> tuple[HostStatus, ...]:
        """Return the hosts, and what of them is in use.

        :param running: how many tests run, for a source that does not know.
        """


STATUS_SOURCE: Final[pytest.StashKey[StatusSource]] = pytest.StashKey()
"""In a config: what knows of the run, where this plugin schedules its tests."""


class OwnProcess:
    """A run without a scheduler of this plugin's: of one process, or one that pytest-xdist schedules by itself."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def total(self) -> int:
        return number_of_tests(self._config)

    def place(self, test: str) -> tuple[str, tuple[str, ...]]:
        from ...session.stash import HOSTS, RUN

        stash = self._config.stash
        if HOSTS not in stash or RUN not in stash:
            return "", ()
        return "", (stash[RUN].host.name,)

    def waiting(self) -> tuple[WaitingTests, ...]:
        return ()

    def hosts(self, running: int) -> tuple[HostStatus, ...]:
        specs = _specs(self._config)
        used = min(running, slots_of(specs[0], specs))
        return tuple(_unscheduled(spec, specs, used=used if spec is specs[0] else 0) for spec in specs)


def _specs(config: pytest.Config) -> tuple[HostSpec, ...]:
    from ...session.stash import SETTINGS

    if (hosts := config.stash[SETTINGS].hosts) is None:
        with quick_imports():
            from ...hosts.local import THIS_MACHINE

        return (THIS_MACHINE,)
    with quick_imports():
        from ...hosts.inventory.inventory import read_inventory

    return read_inventory(hosts)


def _unscheduled(spec: HostSpec, specs: tuple[HostSpec, ...], *, used: int) -> HostStatus:
    return HostStatus(
        name=spec.name,
        slots=slots_of(spec, specs),
        used=used,
        memory_mib=memory_mib_of(spec, specs),
        used_memory_mib=0,
        cpus=cpus_of(spec),
        used_cpus=0,
    )


def host_status(state: HostState, making: Mapping[tuple[str, str], float]) -> HostStatus:
    """Return a scheduler's state of a host.

    :param making: by host and guest, since when templates are being made.
    """
    host, now_s = state.host, time.time()
    return HostStatus(
        name=host.name,
        slots=host.slots,
        used=host.slots - state.slots,
        memory_mib=host.memory_mib,
        used_memory_mib=host.memory_mib - state.memory_mib,
        cpus=host.cpus,
        used_cpus=host.cpus - state.cpus,
        state="up" if state.alive else "lost",
        templates=tuple(sorted(state.templates)),
        making=tuple(
            TemplateStatus(guest=guest, since=making.get((host.name, guest), now_s)) for guest in state.building
        ),
    )
