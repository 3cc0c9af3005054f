"""``propolis ps``: what is there on this machine, who owns it, since when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import click

from ..agent.ledger import Entry
from ..agent.reaper import RunSurvey, survey
from ..hosts.run_directory import base_directory

__all__ = ["ps"]

WIDTHS: Final = (25, 6, 24, 8, 10, 0)


@click.command()
def ps() -> None:
    """List what runs of this user have on this machine, living and dead."""
    rows = [row for run in survey(base_directory()) for row in _rows(run)]
    if not rows:
        click.echo("nothing is there")
        return
    for row in [("RUN", "AGENT", "OWNER", "AGE", "KIND", "WHAT"), *rows]:
        click.echo(
            "  ".join(f"{word:<{width}}" for word, width in zip(row, (25, 6, 24, 8, 10, 0), strict=True)).rstrip()
        )


def _rows(run: RunSurvey) -> Iterator[tuple[str, ...]]:
    name = run.directory.name
    if run.contents is None:
        yield name, "?", "", "", "", run.problem or ""
        return
    agent = "alive" if run.is_alive else "dead"
    for entry in run.contents.entries.values():
        yield name, agent, _owner(entry), _age(entry.since), entry.kind, _what(entry)
    if not run.contents.entries:
        yield name, agent, "", _age(run.contents.header.since), "agent", f"pid {run.contents.header.agent.pid}"


def _owner(entry: Entry) -> str:
    return f"{entry.owner.client} ({'alive' if entry.owner.is_alive() else 'dead'})"


def _what(entry: Entry) -> str:
    kept = f", kept: {entry.kept.reason}" if entry.kept else ""
    return (entry.what.get("path") or (f"pid {entry.what['pid']}" if "pid" in entry.what else "about to start")) + kept


def _age(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
