"""``propolis gc``: removes what dead runs left behind."""

from __future__ import annotations

import click

from ..agent.ledger import Entry
from ..agent.reaper import Report, reap
from ..agent.rendezvous import remove_abandoned
from ..hosts.run_directory import base_directory
from ..settings import Settings
from ..storage.eviction import evict
from ..storage.store import template_directory

__all__ = ["gc"]


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--kept", is_flag=True, help="Remove also what was kept on purpose.")
@click.option("--templates", is_flag=True, help="Remove also the templates that VMs are forked from.")
def gc(dry_run: bool, kept: bool, templates: bool) -> None:
    """Remove what dead runs of this user left. Nothing of a living run, or of another user, is touched."""
    base = base_directory()
    report = reap(base, include_kept=kept, dry_run=dry_run)
    if not dry_run:
        remove_abandoned(base)
    _show(report)
    if templates:
        place = Settings.resolve(command_line={}, ini={}).artifact_dir
        for evicted in evict(template_directory(place), max_age_s=0, max_bytes=0, dry_run=dry_run):
            click.echo(f"{'would remove' if dry_run else 'removed'} {evicted.path} ({evicted.size_bytes >> 20} MiB)")
    if report.failed:
        raise click.exceptions.Exit(1)


def _show(report: Report) -> None:
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
    if not any((report.removed, report.strays, report.directories, report.kept, report.left, report.failed)):
        click.echo("nothing to remove")


def _name(entry: Entry) -> str:
    return f"{entry.kind} {entry.what.get('path') or entry.what.get('pid') or entry.id}"
