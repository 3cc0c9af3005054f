"""``propolis doctor``: check what this machine can do, and how to fix what it cannot."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import PropolisError
from ..settings import OPTIONS, Settings
from .hosts.remote_commands import PROGRAM, ask_hosts, on_hosts, run_on_hosts
from .main import settings_options

if TYPE_CHECKING:
    from ..guests.adapter import GuestImage
    from ..guests.registry import GuestRegistry
    from ..hosts.host import CommandOutput, HostSpec
    from ..hosts.inventory.capabilities import Survey
    from ..hosts.inventory.capability import Capability
    from ..hosts.inventory.servers import ServerReport
    from ..storage.store import ArtifactStore
    from .project import Project

__all__ = ["doctor"]


_OPTIONS: Final = (
    *("guest", "accelerator", "qemu", "server", "boot_rom", "artifacts"),
    *("artifact_dir", "boot_timeout", "settings_file"),
)
"""The options of pytest that tell what a run needs of a host."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--tests", "tests", metavar="PATH", multiple=True, help="Say what the tests of PATH need, and which skip."
)
@click.option("--propolis-hosts", "run_hosts", metavar="HOSTS", help="With --tests: the hosts of the run.")
@functools.partial(settings_options, names=_OPTIONS)
@on_hosts
def doctor(
    *,
    settings: Settings,
    as_json: bool,
    tests: tuple[str, ...],
    run_hosts: str | None,
    hosts: tuple[HostSpec, ...] | None,
) -> None:
    """Check what this machine can do, and how to fix what it cannot; with --hosts what the hosts of an inventory can.

    Each capability is actually exercised: a server program is started, and asked. The settings are those that a run in
    this directory would have. The exit status is 0 if virtual machines can run there, and 1 if they cannot.

    With --tests, collect the tests of a path, as pytest would here, and say before they run what each needs, which
    hosts have it, and why it would be skipped. The exit status is 0 if the tests can be collected.
    """
    if tests:
        _explain_tests(tests, run_hosts, as_json=as_json)
        return
    if hosts is None:
        click.get_current_context().exit(0 if _examine(settings, as_json=as_json) else 1)
    arguments = ["doctor", "--propolis-accelerator", settings.accelerator]
    if as_json:
        found = _hosts_as_objects(hosts, [*arguments, "--json"], settings)
        click.echo(json.dumps({"hosts": found}, indent=2))
        click.get_current_context().exit(0 if all(host.get("can_run_vms") for host in found.values()) else 1)
    ask_hosts(hosts, arguments, here=lambda: _examine(settings, as_json=False))


def _examine(settings: Settings, *, as_json: bool) -> bool:
    """Show what this machine can do; return whether VMs can run here."""
    found = _survey(settings)
    click.echo(json.dumps(_as_object(found), indent=2) if as_json else "\n".join(_as_table(found)))
    return found.can_run_vms


def _survey(settings: Settings) -> Survey:
    from ..guests.registry import GuestRegistry
    from ..hosts.inventory.capabilities import survey

    guests = GuestRegistry()
    if project := _project():
        given = click.get_current_context().params
        settings = Settings.resolve(command_line=given, ini=project.ini, ini_directory=project.ini_directory)
        guests = project.guests
    return asyncio.run(survey(settings, guest_files=_guest_files(settings, guests)))


def _hosts_as_objects(
    hosts: Sequence[HostSpec], arguments: Sequence[str], settings: Settings
) -> dict[str, dict[str, Any]]:
    """Return the capabilities that each host reports with --json, or its error."""
    from ..hosts.kinds import is_elsewhere

    remote = [spec for spec in hosts if is_elsewhere(spec)]
    answers = dict(
        zip((spec.name for spec in remote), asyncio.run(run_on_hosts(remote, PROGRAM, arguments)), strict=True)
    )
    here = _as_object(_survey(settings)) if len(remote) < len(hosts) else {}
    return {spec.name: _host_as_object(answers[spec.name]) if spec.name in answers else here for spec in hosts}


def _host_as_object(answer: CommandOutput | PropolisError) -> dict[str, Any]:
    if isinstance(answer, PropolisError):
        return {"can_run_vms": False, "error": str(answer)}
    try:
        found: dict[str, Any] = json.loads(answer.output)
    except ValueError:
        return {"can_run_vms": False, "error": answer.stderr or answer.output}
    return found


def _explain_tests(paths: tuple[str, ...], hosts: str | None, *, as_json: bool) -> None:
    from .explained import as_json as objects
    from .explained import as_lines, explain
    from .project import tests_here

    chosen = {**click.get_current_context().params, "hosts": hosts}
    options = [f"{option.flag}={chosen[option.name]}" for option in OPTIONS if chosen.get(option.name) is not None]
    found = tests_here([*options, *paths], explain)
    click.echo(json.dumps({"tests": objects(found)}, indent=2) if as_json else "\n".join(as_lines(found)))


def _as_object(found: Survey) -> dict[str, Any]:
    needed = [{**asdict(capability), "needed": True} for capability in found.needed]
    useful = [{**asdict(capability), "needed": False} for capability in found.useful]
    needs = [{**asdict(capability), "needed": True} for capability in found.server_needs]
    servers = [asdict(server) for server in found.servers]
    return {"can_run_vms": found.can_run_vms, "capabilities": needed + useful + needs, "servers": servers}


def _as_table(found: Survey) -> Iterator[str]:
    width = max(len(capability.name) for capability in (*found.needed, *found.useful))
    for title, capabilities in (("needed to run VMs", found.needed), ("useful", found.useful)):
        yield f"{title}:"
        for capability in capabilities:
            yield from _row(capability, width)
    yield "servers:"
    for server in found.servers:
        yield from _server_row(server, max(len(server.server) for server in found.servers))
    for capability in found.server_needs:
        yield from _row(capability, width)
    missing = ", ".join(capability.name for capability in found.needed if not capability.ok)
    yield f"VMs cannot run here: see {missing}" if missing else "VMs can run here."


def _row(capability: Capability, width: int) -> Iterator[str]:
    mark = "yes" if capability.ok else "no "
    yield f"  {mark}  {capability.name:{width}}  {capability.detail}"
    if capability.remedy:
        yield f"       {'':{width}}  -> {capability.remedy}"


def _server_row(server: ServerReport, width: int) -> Iterator[str]:
    version = f"; speaks API version {server.api_version}" if server.api_version else ""
    serves = "; serves the VMs of a run" if server.serves else ""
    yield f"  {'yes' if server.ok else 'no '}  {server.server:{width}}  {server.detail}{version}{serves}"
    if server.remedy:
        yield f"       {'':{width}}  -> {server.remedy}"


def _guest_files(settings: Settings, guests: GuestRegistry) -> dict[str, list[Path]]:
    from ..storage.store import ArtifactStore
    from ..storage.user_directories import default_artifact_dir

    store = ArtifactStore(settings.artifact_dir or default_artifact_dir())
    return {name: _files(adapter.image, store) for name, adapter in guests.adapters.items()}


def _project() -> Project | None:
    """Return the project here; if pytest cannot load it, warn and return None."""
    try:
        from .project import project_here

        return project_here()
    except ImportError:  # without pytest, as on a host over SSH
        return None
    except PropolisError as error:
        click.echo(f"propolis: {error.message}; only the built-in guests are shown", err=True)
        return None


def _files(image: GuestImage, store: ArtifactStore) -> list[Path]:
    from ..agent.disks.images import DERIVED_DISK

    artifacts = [artifact for artifact in (image.kernel, image.initrd, image.disk) if artifact is not None]
    prepared = [store.derived_directory(image.recipe.key) / DERIVED_DISK] if image.recipe else []
    return [store.path_of(artifact) for artifact in artifacts] + prepared
