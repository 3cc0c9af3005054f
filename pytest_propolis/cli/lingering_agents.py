"""End agents that linger without clients, for ``propolis gc --agents``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import click

from ..agent_api.agent_process import SOCKET_NAME
from ..errors import AgentError
from ..hosts.agent_clients.synchronous import AgentClient
from ..hosts.known_directories import known_base_directories
from ..ledger.survey import RunSurvey, survey

__all__ = ["Ended", "end_lingering_agents"]

LEAVE_TIMEOUT_S: Final = 15.0


@dataclass(slots=True)
class Ended:
    """The result of ending agents of one kind.

    :param any: whether there was an agent of this kind.
    :param failed: whether one could not be ended.
    """

    any: bool = False
    failed: bool = False


def end_lingering_agents(*, dry_run: bool) -> Ended:
    """End this user's agents that have no clients, and make those in use exit with their last client.

    Those of runs with another XDG_RUNTIME_DIR are included.
    """
    ended = Ended()
    for base in known_base_directories():
        for run in survey(base):
            if run.is_alive and run.contents and run.contents.header.lingers:
                ended.any = True
                ended.failed |= not _end(run, dry_run=dry_run)
    return ended


def _end(run: RunSurvey, *, dry_run: bool) -> bool:
    """End one agent, or show what would happen; return whether that was possible."""
    assert run.contents is not None
    process = run.contents.header.agent
    client = AgentClient(run.directory / SOCKET_NAME)
    try:
        kept = client.kept()
        found = client.lingering() if dry_run else client.end_lingering()
    except AgentError as error:
        if process.is_alive():
            click.echo(
                f"could not end the agent {process.pid}: {error.message}; end it with `kill {process.pid}`", err=True
            )
        return not process.is_alive()
    if found.until is None:
        click.echo(f"left the agent {process.pid}: it has clients{'' if dry_run else ', and leaves with the last one'}")
        return True
    if kept:
        click.echo(f"left the agent {process.pid}: it keeps VMs or disks, which `propolis gc --kept` removes")
        return True
    if not dry_run and not process.wait_gone(LEAVE_TIMEOUT_S):
        click.echo(
            f"the agent {process.pid} has not ended within {LEAVE_TIMEOUT_S:.0f} s: see {run.directory}", err=True
        )
        return False
    click.echo(f"{'would end' if dry_run else 'ended'} the agent {process.pid}, which had no clients")
    return True
