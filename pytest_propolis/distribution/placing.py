"""Whether this run places its tests on hosts itself, and how many workers that wants."""

from __future__ import annotations

import pytest

from ..errors import SettingsError
from ..hosts.inventory.capacity import slots_of, vms_by_memory
from ..hosts.inventory.probing import probed_inventory
from ..session.internals import dist_was_chosen, is_controller, is_worker, numbers_of_workers, worker_input
from ..session.stash import SETTINGS
from ..settings import Settings
from .run_events import run_events
from .worker_channel import CHANNEL, WorkerEnd

__all__ = ["place_tests", "wanted_workers"]


def place_tests(config: pytest.Config) -> None:
    """Have the controller place tests on the hosts of the inventory.

    With a ``--dist`` that the user chose, scheduling is xdist's, and workers take turns at the hosts.
    """
    if not is_worker(config):
        from .elsewhere import RetrySummary

        RetrySummary(config)
    if is_worker(config):
        if CHANNEL in worker_input(config):
            config.pluginmanager.register(WorkerEnd(config), "propolis-placement")
        else:  # its scheduling is xdist's
            _retry_here(config)
    elif not is_controller(config):
        _retry_here(config)
    elif not dist_was_chosen(config):
        from .durations_file import read_durations
        from .placer import Placer

        path = config.stash[SETTINGS].durations
        try:
            measured = read_durations(path) if path else {}
        except SettingsError as error:
            raise pytest.UsageError(str(error)) from None
        placer = Placer(measured)
        config.pluginmanager.register(placer, "propolis-placement")
        run_events(config).on_report.append(placer.reported)


def _retry_here(config: pytest.Config) -> None:
    """Let tests run again on hosts that are not lost: `Run.placed` has those first."""
    from ..session.stash import HOSTS
    from .elsewhere import RetryElsewhere

    def elsewhere(test: str, lost: frozenset[str]) -> bool:
        return any(not host.is_lost for host in config.stash.get(HOSTS, ()))

    config.pluginmanager.register(RetryElsewhere(config, elsewhere), "propolis-elsewhere")


def wanted_workers(config: pytest.Config, settings: Settings) -> int:
    """Return how many workers ``-n auto`` starts.

    That is what a hook of the user's says, or one per slot of the inventory. Without an inventory it is xdist's number;
    in a run with ``-p propolis`` or any setting of this plugin, as far as the memory of this machine has room for so
    many VMs of the run's default size. Other runs may have no VMs at all.

    :raises pytest.UsageError: when the inventory is wrong.
    """
    own, of_xdist = numbers_of_workers(config)
    if own is not None:
        return own
    if settings.hosts is None:
        has_vms = settings.is_any_given or "propolis" in config.getoption("plugins")
        return min(of_xdist, vms_by_memory(settings.memory_mib)) if has_vms else of_xdist
    try:
        specs = probed_inventory(settings.hosts)
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    return sum(slots_of(spec, specs) for spec in specs)
