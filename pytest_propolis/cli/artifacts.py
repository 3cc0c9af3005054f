"""`propolis artifacts`: what the catalogs define, and what of it is in the store."""

from __future__ import annotations

import asyncio
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import ArtifactError, ConfigError
from ..settings import OPTIONS, Settings

if TYPE_CHECKING:
    from ..storage.catalogs.catalog import Catalog, CatalogEntry
    from ..storage.store import ArtifactStore

__all__ = ["artifacts"]

HASH: Final = re.compile(r"[0-9a-f]{64}")
OPTIONS_HERE: Final = ("artifacts", "artifact_dir", "settings_file")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def artifacts() -> None:
    """Manage artifacts: the files that VMs are built from, as catalogs define them."""


def _with_catalog(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose catalogs and the store, and call the command with both."""

    @functools.wraps(function)
    def with_catalog(**arguments: Any) -> Any:
        from ..storage.catalogs.catalog import read_catalogs
        from ..storage.store import ArtifactStore, default_artifact_dir

        given = {name: arguments.pop(name) for name in OPTIONS_HERE}
        settings = Settings.resolve(command_line=given, ini={})
        store = ArtifactStore(settings.artifact_dir or default_artifact_dir())
        return function(catalog=read_catalogs(settings.artifacts or ()), store=store, **arguments)

    decorated = with_catalog
    for option in reversed([option for option in OPTIONS if option.name in OPTIONS_HERE]):
        decorated = click.option(option.flag, option.name, metavar=option.metavar, help=option.help)(decorated)
    return decorated


@artifacts.command("list")
@_with_catalog
def list_artifacts(*, catalog: Catalog, store: ArtifactStore) -> None:
    """List the artifacts of the catalogs: name, kind, where it is stored, and where it comes from."""
    rows = [(name, entry.kind, _stored(store, entry), str(entry.artifact.source)) for name, entry in _sorted(catalog)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:2] if rows else []
    for name, kind, stored, source in rows:
        click.echo(f"{name:{widths[0]}}  {kind:{widths[1]}}  {stored or 'not fetched'}  from {source}")


@artifacts.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_with_catalog
def fetch(*, catalog: Catalog, store: ArtifactStore, names: tuple[str, ...]) -> None:
    """Fetch artifacts that are not in the store: those NAMEs, or all."""
    for name in names or sorted(catalog.entries):
        path = asyncio.run(store.get(catalog.get(name), _say))
        click.echo(f"{name}: {path}")


@artifacts.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_with_catalog
def verify(*, catalog: Catalog, store: ArtifactStore, names: tuple[str, ...]) -> None:
    """Hash what is in the store: those NAMEs, or all. The exit status is 1 if something is damaged."""
    from ..storage.files import sha256_of

    damaged = False
    for name in names or sorted(catalog.entries):
        artifact = catalog.get(name)
        path = store.place(artifact)
        if not path.exists():
            click.echo(f"{name}: not fetched")
        elif artifact.sha256 is None:
            click.echo(f"{name}: {path} has no hash to compare with")
        elif (found := asyncio.run(sha256_of(path))) == artifact.sha256:
            click.echo(f"{name}: {path} is intact")
        else:
            damaged = True
            click.echo(f"{name}: {path} is damaged: its SHA-256 is {found}, and should be {artifact.sha256}")
    click.get_current_context().exit(1 if damaged else 0)


@artifacts.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--catalog", "target", type=click.Path(path_type=Path), required=True, help="Catalog to add it to.")
@_with_catalog
def add(*, catalog: Catalog, store: ArtifactStore, name: str, file: Path, target: Path) -> None:
    """Define the local FILE as the artifact NAME in a catalog, which is made if it is not there."""
    from ..storage.artifacts import checked_name
    from ..storage.catalogs.catalog import read_catalogs
    from ..storage.files import sha256_of

    checked_name(name, what="artifact: name")
    existing = read_catalogs([target]) if target.exists() else catalog
    if name in existing.entries:
        raise ConfigError(f"{existing.entries[name].defined_in} has an artifact {name!r}", hint="choose another name")
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
@click.option("--yes", is_flag=True, help="Remove it; without this, only say what would be removed.")
@_with_catalog
def gc(*, catalog: Catalog, store: ArtifactStore, yes: bool) -> None:
    """Remove fetched artifacts that neither a catalog nor a guest has, and downloads that were broken off."""
    from .project import guests_here

    wanted = {entry.artifact.sha256 for entry in catalog.entries.values()}
    for guest in guests_here().adapters.values():
        image = guest.image
        wanted |= {artifact.sha256 for artifact in (image.kernel, image.initrd, image.disk) if artifact is not None}
    contents = [path for path in _entries(store.directory) if HASH.fullmatch(path.name) and path.name not in wanted]
    for path in [*contents, *_entries(store.directory / "shelf")]:
        click.echo(f"{'removing' if yes else 'would remove'} {path} ({_size(path) >> 20} MiB)")
        if yes:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _sorted(catalog: Catalog) -> list[tuple[str, CatalogEntry]]:
    return sorted(catalog.entries.items())


def _stored(store: ArtifactStore, entry: CatalogEntry) -> str:
    path = store.place(entry.artifact)
    return str(path) if path.exists() else ""


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _size(path: Path) -> int:
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in paths)


def _quoted(text: str) -> str:
    """A TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _say(line: str) -> None:
    click.echo(f"propolis: {line}", err=True)
