"""Abandonment: leave cleanup to the agents when a run will not wait any longer.

All of it works without an event loop, and may be called by a signal handler.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from ..errors import PropolisError
from ..ledger.ledger import LEDGER_NAME, read_ledger
from .lifeline import Lifeline
from .run_directory import base_directory

__all__ = ["abandon_to_agents", "vms_of_run"]


def abandon_to_agents() -> int:
    """Close this process's lifelines: the agents remove what it owned, without anything waiting for that.

    :returns: how many VMs those agents have, as far as their ledgers say.
    """
    lifelines = Lifeline.all_open()
    vms = sum(_vms_in(directory) for directory in {lifeline.path.parent for lifeline in lifelines})
    for lifeline in lifelines:
        lifeline.drop()
    return vms


def vms_of_run(run: str) -> int:
    """Return how many VMs the agents of a run have, according to their ledgers.

    :param run: the word of `run_token`.
    """
    return sum(_vms_in(directory) for directory in base_directory().glob(f"{run}-*"))


def _vms_in(directory: Path) -> int:
    """Count VM directories; kept VMs are not about to be removed."""
    with contextlib.suppress(OSError, PropolisError):
        now = time.time()
        return sum(
            Path(entry.what["path"]).parent == directory / "vms" and not entry.is_kept(now=now)
            for entry in read_ledger(directory / LEDGER_NAME).entries.values()
            if entry.kind == "directory"
        )
    return 0
