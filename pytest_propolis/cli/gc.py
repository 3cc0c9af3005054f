"""``propolis gc``: remove what dead runs left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..agent_api.messages import KeptListed
from ..errors import AgentError
from ..hosts.agent_clients.synchronous import AgentClient, running_agents
from ..hosts.known_directories import known_base_directories
from ..hosts.run_directory import base_directory
from ..hosts.ssh.link_client import link_base, remove_abandoned_links
from ..ledger.disk_directories import remove_abandoned_disks
from ..ledger.entry import Entry
from ..ledger.reaper import reap
from ..ledger.reaper_report import Report
from ..ledger.rendezvous import remove_abandoned
from ..settings import Settings
from ..storage.eviction import evict
from ..storage.user_directories import disk_directory, template_directory
from .hosts.remote_commands import ask_hosts, on_hosts
from .lingering_agents import Ended, end_lingering_agents

if TYPE_CHECKING:
    from ..hosts.host import HostSpec

__all__ = ["gc"]

LEAVE_TIMEOUT_S: Final = 5.0


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, without removing it.")
@click.option("--kept", is_flag=True, help="Also remove what was kept for inspection.")
@click.option("--templates", is_flag=True, help="Also remove the templates that VMs are forked from.")
@click.option("--agents", is_flag=True, help="Also end agents that stay without clients (--propolis-linger).")
@on_hosts
def gc(*, dry_run: bool, kept: bool, templates: bool, agents: bool, hosts: tuple[HostSpec, ...] | None) -> None:
    """Remove what this user's dead runs left behind. Active runs and other users' runs are never touched.

    With --kept, also remove VMs and disks kept for inspection, and what runs with another XDG_RUNTIME_DIR left behind.

    With --agents, also end agents that stay without clients; one in use leaves with its last client. An agent holds the
    templates that it has used: end it to have --templates remove these.

    With --hosts, do so on the hosts of an inventory.
    """
    chosen = {"--dry-run": dry_run, "--kept": kept, "--templates": templates, "--agents": agents}

    def collect() -> bool:
        ended = end_lingering_agents(dry_run=dry_run) if agents else Ended()
        return _collect(dry_run=dry_run, kept=kept, templates=templates, found=ended.any) and not ended.failed

    if hosts is not None:
        arguments = ["gc", *(flag for flag, given in chosen.items() if given)]
        ask_hosts(hosts, arguments, here=collect)
    elif not collect():
        raise click.exceptions.Exit(1)


def _collect(*, dry_run: bool, kept: bool, templates: bool, found: bool) -> bool:
    """Clean up this machine; return whether everything could be removed.

    :param found: whether something was reported already.
    """
    cleared = [
        _clear(base, dry_run=dry_run, kept=kept) for base in (known_base_directories() if kept else [base_directory()])
    ]
    done = found or any(reported for reported, _ in cleared)
    done |= _remove_disks(dry_run=dry_run)
    done |= _remove_links(dry_run=dry_run)
    if templates:
        done |= _remove_templates(dry_run=dry_run)
    if not done:
        click.echo("nothing to remove")
    return all(complete for _, complete in cleared)


def _clear(base: Path, *, dry_run: bool, kept: bool) -> tuple[bool, bool]:
    """Clean up one base directory. Return whether anything was reported, and whether everything could be removed."""
    found = _clear_kept(base, dry_run=dry_run, remove=kept)
    report = reap(base, include_kept=kept, dry_run=dry_run)
    if not dry_run:
        remove_abandoned(base)
    return _show(report) or found, not report.failed


def _clear_kept(base: Path, *, dry_run: bool, remove: bool) -> bool:
    """Make running agents remove or list their kept resources. Return whether there were any."""
    verb = ("would remove" if dry_run else "removed") if remove else "kept"
    hint = "" if remove else ": `propolis gc --kept` removes it"
    found = False
    for agent in running_agents(base):
        release = remove and not dry_run
        things = _kept(agent, release=release)
        if things and release and agent.process and not agent.answers():
            agent.process.wait_gone(LEAVE_TIMEOUT_S)  # it was there for these alone
        for kept in things:
            found = True
            for vm in kept.vms:
                click.echo(f"{verb} VM {vm.id} {vm.name!r} of {kept.kept.reason}{hint}")
            for disk in kept.disks:
                click.echo(f"{verb} disk {disk.path}{hint}")
            for volume in kept.volumes:
                click.echo(f"{verb} crucible disk {volume.id} {volume.name!r}{hint}")
    return found


def _kept(agent: AgentClient, *, release: bool) -> list[KeptListed]:
    try:
        return agent.release_kept() if release else agent.kept()
    except AgentError as error:
        click.echo(f"could not ask an agent: {error.message}", err=True)
        return []


def _remove_disks(*, dry_run: bool) -> bool:
    """Remove the disks of agents without ledgers. Return whether there were any."""
    settings = Settings.resolve(command_line={}, ini={})
    directory = settings.disk_dir or disk_directory(settings.artifact_dir)
    removed = remove_abandoned_disks(directory, dry_run=dry_run)
    for directory in removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {directory}")
    return bool(removed)


def _remove_links(*, dry_run: bool) -> bool:
    """Remove leftovers of killed link processes. Return whether there were any."""
    base = link_base()
    removed = remove_abandoned_links(base, dry_run=dry_run) if base.is_dir() else []
    for directory in removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {directory}")
    return bool(removed)


def _remove_templates(*, dry_run: bool) -> bool:
    """Remove the templates that no VM is currently using. Return whether there were any."""
    verb = "would remove" if dry_run else "removed"
    settings = Settings.resolve(command_line={}, ini={})
    disks = settings.disk_dir or disk_directory(settings.artifact_dir)
    directory = template_directory(settings.artifact_dir)
    removed = evict(directory, max_age_s=0, max_bytes=0, disks=disks, dry_run=dry_run)
    for evicted in removed:
        click.echo(f"{verb} {evicted.path} ({evicted.size_bytes >> 20} MiB)")
    return bool(removed)


def _show(report: Report) -> bool:
    """Print a report. Return whether it had any lines."""
    verb = "would remove" if report.dry_run else "removed"
    for entry in report.removed:
        click.echo(f"{verb} {_name(entry)}")
    for stray in report.strays:
        click.echo(f"{verb} process {stray.pid}, which no ledger lists")
    for directory in report.directories:
        click.echo(f"{verb} {directory}")
    for entry in report.kept:
        click.echo(f"kept {_name(entry)}: `propolis gc --kept` removes it")
    for left in report.left:
        click.echo(f"left {left.directory}: {left.reason}")
    for failure in report.failed:
        what = _name(failure.entry) if failure.entry else str(failure.directory)
        click.echo(f"could not remove {what}: {failure.reason}", err=True)
    return any((report.removed, report.strays, report.directories, report.kept, report.left, report.failed))


def _name(entry: Entry) -> str:
    return f"{entry.kind} {entry.what.get('path') or entry.what.get('pid') or entry.id}"
