"""The status of a run at one moment, as it is written and read (docs/status.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["HostStatus", "RunningTest", "Snapshot", "TemplateStatus", "WaitingTests"]


class TemplateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A template that is being made.

    :param since: when that began, in s since the epoch.
    """

    guest: str
    since: float


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A host of the run.

    :param slots: how many tests it runs at once.
    :param used: how many of them are taken.
    :param state: ``lost`` if it cannot be reached any more.
    """

    name: str
    slots: int
    used: int
    memory_mib: int
    used_memory_mib: int
    cpus: int
    used_cpus: int
    state: Literal["up", "lost"] = "up"
    templates: tuple[str, ...] = ()
    making: tuple[TemplateStatus, ...] = ()


class RunningTest(msgspec.Struct, frozen=True, kw_only=True):
    """A test that runs.

    :param worker: the worker of pytest-xdist; empty if there is none, or it is not known.
    :param hosts: those that were given to it.
    :param since: when it began, in s since the epoch.
    """

    test: str
    worker: str
    hosts: tuple[str, ...]
    since: float


class WaitingTests(msgspec.Struct, frozen=True, kw_only=True):
    """Tests that wait for the same reason.

    :param tests: some of them.
    """

    reason: str
    count: int
    tests: tuple[str, ...]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment.

    :param run: identifies it among others.
    :param process: the identity of the process that has the terminal.
    :param directory: where pytest was started.
    :param at: when this was so, in s since the epoch.
    :param since: when the run began.
    :param tests: how many there are; 0 while that is not known.
    :param forks: how many VMs were forked from templates so far.
    :param forks_per_s: the same per second, over the last seconds.
    """

    run: str
    process: Mapping[str, str]
    directory: str
    at: float
    since: float
    state: Literal["running", "ended"]
    tests: int
    finished: int
    failed: int
    running: tuple[RunningTest, ...]
    waiting: tuple[WaitingTests, ...]
    hosts: tuple[HostStatus, ...]
    forks: int
    forks_per_s: float
