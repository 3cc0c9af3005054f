"""Abandonment: leave cleanup to the agents when a run no longer waits for it.

All of it works without an event loop, and may be called by a signal handler.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from ..agent_api.messages import run_of_client
from ..errors import PropolisError
from ..ledger.ledger import LEDGER_NAME, read_ledger
from .lifeline import Lifeline
from .run_directory import base_directory
from .run_hosts import LocalRun

__all__ = ["abandon_to_agents", "vms_of_run"]


def abandon_to_agents() -> int:
    """Close this process's lifelines: the agents remove its resources, and nothing waits for that.

    :returns: how many VMs those agents have, according to their ledgers.
    """
    lifelines = Lifeline.all_open()
    keys = {(lifeline.path.parent, run_of_client(lifeline.client)) for lifeline in lifelines}
    vms = sum(_vms_in(directory, run) for directory, run in keys)
    for lifeline in lifelines:
        lifeline.drop()
    return vms


def vms_of_run(run: LocalRun) -> int:
    """Return the number of a run's VMs on this machine, according to the ledgers of its agents."""
    return sum(_vms_in(directory, run.run) for directory in base_directory().glob(f"{run.agent}-*"))


def _vms_in(directory: Path, run: str) -> int:
    """Count VM directories of a run's clients; kept VMs and standby forks are not about to be removed."""
    with contextlib.suppress(OSError, PropolisError):
        now = time.time()
        return sum(
            Path(entry.what["path"]).parent == directory / "vms"
            and run_of_client(entry.owner.client) == run
            and not entry.is_kept(now=now)
            for entry in read_ledger(directory / LEDGER_NAME).entries.values()
            if entry.kind == "directory"
        )
    return 0
