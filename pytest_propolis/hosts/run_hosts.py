"""The hosts of one run, and its ids on them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from ..settings import Settings
from .host import Host
from .kinds import is_elsewhere, open_host
from .local import LocalHost
from .run_directory import run_token

__all__ = ["LocalRun", "coordination_host", "coordination_id", "local_run_ids", "open_hosts", "this_machine"]


class LocalRun(NamedTuple):
    """The ids of a run on one host of this machine.

    :param agent: that of its agent; the run's own, unless the agent lingers.
    :param run: that of the run, with which the names of its clients begin.
    """

    agent: str
    run: str


def open_hosts(
    settings: Settings, *, shared_id: str | None, meanwhile: Callable[[], object] | None = None
) -> tuple[Host, ...]:
    """Return the hosts of the inventory, or this machine if there is none. No connection is made.

    :param shared_id: a secret shared by all processes of a run (xdist's run id); None for a single process.
    :param meanwhile: called while the agent of this machine starts.
    :raises SettingsError: if the inventory is invalid.
    """
    if settings.hosts is None:
        return (LocalHost(settings, run_id=run_token(shared_id), meanwhile=meanwhile),)
    from .inventory.inventory import read_inventory  # here, because most runs have no such file

    shared_id = shared_id or secrets.token_hex(16)
    hosts = tuple(
        open_host(spec, settings, run_token(f"{shared_id}/{spec.name}")) for spec in read_inventory(settings.hosts)
    )
    for host in hosts:
        host.others = hosts
    return hosts


def this_machine(settings: Settings) -> Host:
    """Return this machine as the host of a run of its own, whatever hosts the settings name. No connection is made."""
    return LocalHost(settings, run_id=run_token(None))


def coordination_host(settings: Settings, hosts: tuple[Host, ...], *, run: str) -> Host:
    """Return the host on this machine whose agent serves the run's key-value store.

    :param hosts: those of the run. If none is on this machine, it is one that has no VMs.
    :param run: the id of the run there: `coordination_id`.
    """
    for host in hosts:
        if host.shares_files:
            return host
    return LocalHost(settings, run_id=run)


def coordination_id(shared_id: str | None) -> str:
    """Return the id of a run where its nodes coordinate.

    :param shared_id: as for `open_hosts`.
    """
    return run_token(shared_id and f"{shared_id}//coordination")


def local_run_ids(settings: Settings, *, shared_id: str) -> tuple[LocalRun, ...]:
    """Return the ids of a multi-process run on this machine, whether or not they were used."""
    return tuple(LocalRun(host.agent_id, host.run_id) for host in _local_hosts(settings, shared_id))


def _local_hosts(settings: Settings, shared_id: str) -> list[Host]:
    if settings.hosts is None:
        return [LocalHost(settings, run_id=run_token(shared_id))]
    from .inventory.inventory import read_inventory

    specs = [spec for spec in read_inventory(settings.hosts) if not is_elsewhere(spec)]
    hosts = [open_host(spec, settings, run_token(f"{shared_id}/{spec.name}")) for spec in specs]
    return hosts or [LocalHost(settings, run_id=coordination_id(shared_id))]
