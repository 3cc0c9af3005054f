"""``propolis ps``: list the resources of runs on this machine, with owner and age."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from ..agent_api.agent_process import SOCKET_NAME
from ..agent_api.messages import VmListed
from ..agent_api.retention import Kept
from ..agent_api.volumes import VolumeListed
from ..errors import AgentError
from ..hosts.agent_clients.synchronous import AgentClient
from ..hosts.known_directories import known_base_directories
from ..hosts.run_directory import base_directory
from ..ledger.cleanup import DeadRun, strays
from ..ledger.entry import KEPT_OWNER, Entry, Owner
from ..ledger.identity import find_tagged
from ..ledger.ledger_text import LedgerContents
from ..ledger.survey import RunSurvey, survey
from .hosts.remote_commands import ask_hosts, on_hosts

if TYPE_CHECKING:
    from ..hosts.host import HostSpec

__all__ = ["ps"]

TITLES: Final = ("RUN", "AGENT", "OWNER", "AGE", "KIND", "WHAT")
WIDTHS: Final = (25, 6, 24, 8, 10, 0)


@click.command()
@click.option("--kept", "only_kept", is_flag=True, help="List only what is kept for inspection.")
@on_hosts
def ps(*, only_kept: bool, hosts: tuple[HostSpec, ...] | None) -> None:
    """List the resources of this user's runs on this machine, active and dead; with --hosts on those of an inventory.

    With --kept, include runs with another XDG_RUNTIME_DIR.
    """
    if hosts is None:
        _list(only_kept=only_kept)
    else:
        ask_hosts(hosts, ["ps", *(["--kept"] if only_kept else [])], here=lambda: _list(only_kept=only_kept))


def _list(*, only_kept: bool) -> bool:
    """Show the table of this machine; return True."""
    bases = known_base_directories() if only_kept else [base_directory()]
    rows = [row for base in bases for run in survey(base) for row in _rows(run, only_kept=only_kept)]
    if not rows:
        click.echo("nothing is kept" if only_kept else "nothing is there")
        return True
    for row in [TITLES, *rows]:
        click.echo("  ".join(f"{argument:<{width}}" for argument, width in zip(row, WIDTHS, strict=True)).rstrip())
    return True


def _rows(run: RunSurvey, *, only_kept: bool) -> Iterator[tuple[str, ...]]:
    name = run.directory.name
    if run.contents is None:
        yield name, "?", "", "", "", run.problem or ""
        return
    agent = "alive" if run.is_alive else "dead"
    entries = [entry for entry in run.contents.entries.values() if not only_kept or _is_kept(entry)]
    if not only_kept and run.is_alive and run.contents.header.lingers:
        header = run.contents.header
        yield name, agent, "", _age(header.since), "agent", f"pid {header.agent.pid}, {_describe_stay(run)}"
    owners = {entry.owner.client: entry.owner for entry in entries}
    for vm in _vms(run) if run.is_alive else []:
        if vm.kept or not only_kept:
            owner = _kept_until(vm.kept) if vm.kept else _owner(owners.get(vm.client) or Owner(vm.client))
            yield name, agent, owner, _age(vm.since), "vm", _vm(vm)
    for volume in _volumes(run) if run.is_alive else []:
        if volume.kept or not only_kept:
            holder = owners.get(volume.client) or Owner(volume.client)
            owner = _kept_until(volume.kept) if volume.kept else _owner(holder)
            yield name, agent, owner, _age(volume.since), "volume", _volume(volume)
    for entry in entries:
        owner = _kept_until(entry.kept) if entry.kept else _owner(entry.owner)
        yield name, agent, owner, _age(entry.since), entry.kind, _describe_entry(entry)
    if not run.is_alive and not only_kept:
        for stray in strays(_dead_run(run, run.contents)):
            yield name, agent, "", "", "process", f"pid {stray.pid}, which no ledger lists"
    if not entries and not only_kept and not (run.is_alive and run.contents.header.lingers):
        yield name, agent, "", _age(run.contents.header.since), "agent", f"pid {run.contents.header.agent.pid}"


def _dead_run(run: RunSurvey, contents: LedgerContents) -> DeadRun:
    entries = tuple(contents.entries.values())
    return DeadRun(run.directory, contents.header, entries, spared=tuple(filter(_is_kept, entries)))


def _describe_stay(run: RunSurvey) -> str:
    try:
        found = AgentClient(run.directory / SOCKET_NAME).lingering()
    except AgentError:
        return "does not answer"
    if found.until is None:
        return f"in use; stays for {found.seconds:g} s after its last client" if found.seconds else "in use"
    return f"without clients; stays for {max(0.0, found.until - time.time()):.0f} s"


def _vms(run: RunSurvey) -> list[VmListed]:
    """Return the agent's own report; empty if it is starting or exiting."""
    try:
        return AgentClient(run.directory / SOCKET_NAME).vms()
    except AgentError:
        return []


def _vm(vm: VmListed) -> str:
    owner = vm.kept.reason if vm.kept else vm.group
    return f"{vm.id} {vm.name!r}, {vm.state or 'not created'}, of {owner}"


def _volumes(run: RunSurvey) -> list[VolumeListed]:
    try:
        return AgentClient(run.directory / SOCKET_NAME).volumes()
    except AgentError:
        return []


def _volume(volume: VolumeListed) -> str:
    owner = volume.kept.reason if volume.kept else volume.group
    downstairs = ", ".join(f"{item.address} {item.state}" for item in volume.downstairs)
    return f"{volume.id} {volume.name!r}, {volume.size_bytes >> 20} MiB, of {owner}: {downstairs}"


def _is_kept(entry: Entry) -> bool:
    return entry.owner.client == KEPT_OWNER or entry.kept is not None


def _owner(owner: Owner) -> str:
    if owner.client == KEPT_OWNER:
        return "kept"
    name = f"pid {owner.process.pid}" if owner.process else owner.client
    return f"{name} ({'alive' if owner.is_alive() else 'dead'})"


def _kept_until(kept: Kept) -> str:
    return "kept" if kept.until is None else f"kept until {time.strftime('%a %H:%M', time.localtime(kept.until))}"


def _describe_entry(entry: Entry) -> str:
    what = entry.what.get("path") or (_process(entry) if "pid" in entry.what else "about to start")
    return f"{what}, {entry.what['what']}" if "what" in entry.what else what


def _process(entry: Entry) -> str:
    """Return the process of an entry, and those that it has started: a QEMU of a wrapper script."""
    others = sorted(process.pid for process in find_tagged(entry.id) if str(process.pid) != entry.what["pid"])
    started = f" (started pid {', '.join(map(str, others))})" if others else ""
    return f"pid {entry.what['pid']}{started}"


def _age(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
