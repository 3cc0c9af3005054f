"""`propolis artifacts`: list, fetch and verify the artifacts of the catalogs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArtifactError, ConfigError, HostBusy
from ..hosts.agent_clients.synchronous import running_agents
from ..hosts.known_directories import known_base_directories
from ..settings import Settings
from .main import settings_options

if TYPE_CHECKING:
    from ..storage.catalogs.catalog import Catalog, CatalogEntry
    from ..storage.store import ArtifactStore

__all__ = ["artifacts"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def artifacts() -> None:
    """Manage artifacts: the files that VMs are built from, as catalogs define them."""


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    return settings_options(function, names=("artifacts", "artifact_dir", "disk_dir", "settings_file"))


def _opened(settings: Settings) -> tuple[Catalog, ArtifactStore]:
    from ..storage.catalogs.catalog import read_catalogs
    from ..storage.store import ArtifactStore
    from ..storage.user_directories import default_artifact_dir

    store = ArtifactStore(settings.artifact_dir or default_artifact_dir())
    return read_catalogs(settings.artifacts or ()), store


@artifacts.command("list")
@_options
def list_artifacts(*, settings: Settings) -> None:
    """List the artifacts of the catalogs: name, kind, stored file, and source."""
    catalog, store = _opened(settings)
    rows = [(name, entry.kind, _stored(store, entry), str(entry.artifact.source)) for name, entry in _sorted(catalog)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:2] if rows else []
    for name, kind, stored, source in rows:
        click.echo(f"{name:{widths[0]}}  {kind:{widths[1]}}  {stored or 'not fetched'}  from {source}")


@artifacts.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_options
def fetch(*, settings: Settings, names: tuple[str, ...]) -> None:
    """Fetch the artifacts NAMEs that are not in the store, or all of them."""
    catalog, store = _opened(settings)
    for name in names or sorted(catalog.entries):
        path = asyncio.run(store.get(catalog.get(name), _print_progress))
        click.echo(f"{name}: {path}")


@artifacts.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_options
def verify(*, settings: Settings, names: tuple[str, ...]) -> None:
    """Verify the hashes of the stored artifacts NAMEs, or of all. The exit status is 1 if one is damaged."""
    catalog, store = _opened(settings)
    from ..storage.files import sha256_of

    damaged = False
    for name in names or sorted(catalog.entries):
        artifact = catalog.get(name)
        path = store.path_of(artifact)
        if not path.exists():
            click.echo(f"{name}: not fetched")
        elif (expected := store.known_sha256(artifact)) is None:
            click.echo(f"{name}: {path} has no hash to compare with")
        elif (found := asyncio.run(sha256_of(path))) == expected:
            click.echo(f"{name}: {path} is intact")
        else:
            damaged = True
            click.echo(f"{name}: {path} is damaged: its SHA-256 is {found}, and should be {expected}")
    click.get_current_context().exit(1 if damaged else 0)


@artifacts.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--catalog", "target", type=click.Path(path_type=Path), required=True, help="Catalog to add it to.")
@_options
def add(*, settings: Settings, name: str, file: Path, target: Path) -> None:
    """Define the local FILE as the artifact NAME in a catalog, which is created if it does not exist."""
    catalog, _ = _opened(settings)
    from ..storage.artifacts import checked_name
    from ..storage.catalogs.catalog import read_catalogs
    from ..storage.files import sha256_of

    checked_name(name, what="artifact: name")
    known = {**catalog.entries, **(read_catalogs([target]).entries if target.exists() else {})}
    if name in known:
        raise ConfigError(f"{known[name].defined_in} has an artifact {name!r}", hint="choose another name")
    sha256 = asyncio.run(sha256_of(file))
    absolute = file.absolute()
    entry = (
        f'\n[artifacts.{_quoted(name)}]\nfilename = {_quoted(absolute.name)}\nkind = "file"\n'
        f"\n[artifacts.{_quoted(name)}.source.local_path]\npath = {_quoted(str(absolute.parent))}\n"
        f'sha256 = "{sha256}"\n'
    )
    part = target.with_name(f".{target.name}.part")
    before = target.read_text(encoding="utf-8") if target.exists() else ""
    part.write_text(before + entry, encoding="utf-8")
    try:
        read_catalogs([part])
    except ArtifactError:
        part.unlink()
        raise
    part.replace(target)
    click.echo(f"{name}: {absolute}, SHA-256 {sha256}, is in {target}")


@artifacts.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, without removing it.")
@_options
def gc(*, settings: Settings, dry_run: bool) -> None:
    """Remove fetched artifacts that no catalog and no guest uses, and incomplete downloads.

    The backing files of disks stay. Nothing is removed while runs of this user are active.
    """
    catalog, store = _opened(settings)
    from ..storage.eviction import evict_fetched
    from ..storage.user_directories import disk_directory
    from .project import guests_here

    wanted = {entry.artifact.sha256 for entry in catalog.entries.values()}
    for guest in guests_here().adapters.values():
        image = guest.image
        wanted |= {artifact.sha256 for artifact in (image.kernel, image.initrd, image.disk) if artifact is not None}
    if not dry_run and any(any(running_agents(base)) for base in known_base_directories()):
        raise HostBusy("runs are active on this machine, and may use artifacts", hint="see `propolis ps`; try later")
    disks = settings.disk_dir or disk_directory(settings.artifact_dir)
    keep = {sha256 for sha256 in wanted if sha256 is not None}
    for evicted in evict_fetched(store.directory, wanted=keep, disks=disks, dry_run=dry_run):
        verb = "would remove" if dry_run else "removed"
        click.echo(f"{verb} {evicted.path} ({evicted.size_bytes >> 20} MiB): {evicted.reason}")


def _sorted(catalog: Catalog) -> list[tuple[str, CatalogEntry]]:
    return sorted(catalog.entries.items())


def _stored(store: ArtifactStore, entry: CatalogEntry) -> str:
    path = store.path_of(entry.artifact)
    return str(path) if path.exists() else ""


def _quoted(text: str) -> str:
    """Return a TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _print_progress(line: str) -> None:
    click.echo(f"propolis: {line}", err=True)
