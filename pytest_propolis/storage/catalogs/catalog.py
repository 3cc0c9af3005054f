"""Catalogs: artifacts by name, read from TOML files in the format of PHD's artifact stores."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

import msgspec

from ...errors import ArtifactError, ConfigError
from ...field_checks import closest
from ..artifacts import Artifact
from ..debian import DebianBuild
from ..sources import LocalFile, WheelMember
from .archive_member import ArchiveMember
from .derived_file import CatalogSource, DerivedFile
from .remote_file import RemoteFile

__all__ = ["Catalog", "CatalogEntry", "read_catalogs"]

BUILDOMAT: Final = "https://buildomat.eng.oxide.computer/public/file"
BUILDOMAT_WAIT_S: Final = 1200.0
"""As long as PHD waits: the artifact may still be being built."""
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")
KINDS: Final = ("bootrom", "propolis_server", "crucible_downstairs", "file")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where an artifact is defined, and what of the rest of its definition a source needs."""

    catalog: Path
    filename: str
    servers: tuple[str, ...]


class _SourceTable(Protocol):
    """A table ``source.KIND`` of a catalog."""

    @property
    def sha256(self) -> str | None:
        """The stated hash of the artifact."""

    def source(self, place: _Place) -> CatalogSource:
        """
        :raises ArtifactError: when a value is wrong.
        """


class _RemoteServer(msgspec.Struct, forbid_unknown_fields=True):
    sha256: str

    def source(self, place: _Place) -> RemoteFile:
        if not place.servers:
            raise ArtifactError("it is on a remote server, and remote_server_uris names none", hint="name some")
        return _remote_file(*(f"{uri.rstrip('/')}/{quote(place.filename)}" for uri in place.servers))


class _LocalPath(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    sha256: str | None = None

    def source(self, place: _Place) -> LocalFile:
        return LocalFile(str(place.catalog.parent / Path(self.path).expanduser() / place.filename))


class _Buildomat(msgspec.Struct, forbid_unknown_fields=True):
    repo: str
    series: str
    commit: str
    sha256: str

    def source(self, place: _Place) -> RemoteFile:
        if not COMMIT.fullmatch(self.commit):
            raise ArtifactError(f"its commit is {self.commit!r}", hint="write all 40 hexadecimal digits")
        url = "/".join((BUILDOMAT, self.repo, self.series, self.commit, quote(place.filename)))
        return RemoteFile((url,), BUILDOMAT_WAIT_S)


class _Url(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    sha256: str

    def source(self, place: _Place) -> RemoteFile:
        return _remote_file(self.url)


class _Wheel(msgspec.Struct, forbid_unknown_fields=True):
    distribution: str
    version: str
    member: str
    sha256: str

    def source(self, place: _Place) -> WheelMember:
        return WheelMember(self.distribution, self.version, self.member)


class _Derived(msgspec.Struct, forbid_unknown_fields=True):
    base: str
    recipe: str
    recipe_sha256: str
    sha256: str | None = None


class _Source(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Exactly one of these tables. Each but ``derived``, which refers to another artifact, is a `_SourceTable`."""

    remote_server: _RemoteServer | None = None
    local_path: _LocalPath | None = None
    buildomat: _Buildomat | None = None
    url: _Url | None = None
    wheel: _Wheel | None = None
    derived: _Derived | None = None


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    filename: str
    kind: str | dict[str, str]
    source: _Source
    untar: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    artifacts: dict[str, _Entry]
    remote_server_uris: tuple[str, ...] = ()


def _remote_file(*urls: str) -> RemoteFile:
    """
    :raises ArtifactError: when one is no URL of an HTTP server.
    """
    for url in urls:
        try:
            parts = urlsplit(url)
            is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_http = False
        if not is_http:
            raise ArtifactError(f"its URL is {url!r}", hint="write http://HOST/PATH or https://HOST/PATH")
    return RemoteFile(urls)


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """An artifact of a catalog.

    :param kind: ``bootrom``, ``propolis_server``, ``crucible_downstairs``, ``file``, or ``guest_os: NAME``.
    :param defined_in: the file that it stands in.
    """

    artifact: Artifact
    kind: str
    defined_in: Path


@dataclass(frozen=True, slots=True)
class Catalog:
    """Artifacts by name."""

    entries: Mapping[str, CatalogEntry]

    def find(self, name: str) -> Artifact | None:
        """Return the artifact of a name, if there is one."""
        return self.entries[name].artifact if name in self.entries else None

    def get(self, name: str) -> Artifact:
        """Return the artifact of a name.

        :raises ConfigError: when there is none, with the closest name.
        """
        if name in self.entries:
            return self.entries[name].artifact
        known = ", ".join(sorted(self.entries)) or "none: --propolis-artifacts names files that define some"
        hint = closest(name, self.entries) or f"there are: {known}"
        raise ConfigError(f"there is no artifact named {name!r}", hint=hint)


def read_catalogs(files: Iterable[Path]) -> Catalog:
    """Read catalogs. Nothing is fetched.

    :raises ArtifactError: when a file cannot be read or is wrong, naming the file, the artifact and the fault; or when
        two files define one name.
    """
    entries: dict[str, CatalogEntry] = {}
    for file in files:
        for name, entry in _read(file).items():
            if name in entries:
                raise ArtifactError(
                    f"{file}: the artifact {name!r} is also in {entries[name].defined_in}", hint="rename one of them"
                )
            entries[name] = entry
    return Catalog(entries)


def _read(file: Path) -> dict[str, CatalogEntry]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{file} cannot be read: {reason}", hint="correct the file") from None
    try:
        decoded = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{file}: {error}", hint="see docs/artifacts.md for the format") from None
    return {name: _entry(file, name, decoded, ()) for name in decoded.artifacts}


def _entry(file: Path, name: str, decoded: _File, derived_from: tuple[str, ...]) -> CatalogEntry:
    """Return an artifact.

    :param derived_from: the artifacts that are derived from it, for which it is asked.
    """
    entry = decoded.artifacts[name]
    try:
        kind = _kind(entry.kind)
        if (derived := entry.source.derived) is not None and not _other_sources(entry.source):
            made = _derived(file, derived, decoded, (*derived_from, name))
            return CatalogEntry(Artifact(name, entry.filename, None, made), kind, file)
        source, sha256 = _source(file, entry, decoded.remote_server_uris)
        if entry.untar is not None:
            if not isinstance(source, RemoteFile | LocalFile):
                raise ArtifactError("untar is for archives from servers and local paths", hint="leave it out")
            source = ArchiveMember(source, entry.filename, sha256, entry.untar)
            return CatalogEntry(Artifact(name, _last_part(entry.untar), None, source), kind, file)
        return CatalogEntry(Artifact(name, entry.filename, sha256, source), kind, file)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: artifact {name!r}: {error.message}", hint=error.hint) from None


def _kind(kind: str | dict[str, str]) -> str:
    if isinstance(kind, str):
        if kind in KINDS:
            return kind
        raise ArtifactError(f"its kind is {kind!r}", hint=closest(kind, KINDS) or f"choose one of {', '.join(KINDS)}")
    guest = kind.get("guest_os")
    if guest is None or len(kind) != 1:
        raise ArtifactError(f"its kind is {kind!r}", hint='write a word, or { guest_os = "alpine" }')
    return f"guest_os: {guest}"


def _source(file: Path, entry: _Entry, servers: tuple[str, ...]) -> tuple[CatalogSource, str | None]:
    """Return the source and the stated hash of an entry."""
    tables = [getattr(entry.source, field) for field in entry.source.__struct_fields__]
    given: list[_SourceTable] = [table for table in tables if table is not None]
    if len(given) != 1:
        raise ArtifactError(f"it has {len(given)} sources", hint="give exactly one")
    place = _Place(catalog=file, filename=entry.filename, servers=servers)
    return given[0].source(place), given[0].sha256


def _other_sources(source: _Source) -> bool:
    return any(getattr(source, field) is not None for field in source.__struct_fields__ if field != "derived")


def _derived(file: Path, derived: _Derived, decoded: _File, names: tuple[str, ...]) -> DerivedFile:
    if derived.base in names:
        raise ArtifactError(f"it is derived from itself: {' from '.join((*names, derived.base))}", hint="name another")
    if derived.base not in decoded.artifacts:
        known = decoded.artifacts.keys() - set(names)
        raise ArtifactError(
            f"its base {derived.base!r} is not in this file",
            hint=closest(derived.base, known) or f"there are: {', '.join(sorted(known)) or 'no others'}",
        )
    for name in ("recipe_sha256", "sha256"):
        value = getattr(derived, name)
        if value is not None and not SHA256.fullmatch(value):
            raise ArtifactError(
                f"its {name} is {value!r}", hint="write 64 hexadecimal digits, as sha256sum prints them"
            )
    base = _entry(file, derived.base, decoded, names).artifact
    source = base.source
    if isinstance(source, DebianBuild):  # no catalog has one
        raise ArtifactError(f"its base {derived.base!r} is built on this machine", hint="name another")
    hashed = source.archive_sha256 if isinstance(source, ArchiveMember) else base.sha256
    if hashed is None and not isinstance(source, DerivedFile):
        raise ArtifactError(
            f"its base {derived.base!r} has no sha256", hint="give the hash: what is derived changes with it"
        )
    return DerivedFile(
        base=source,
        base_name=base.filename,
        base_sha256=base.sha256,
        recipe=str((file.parent / Path(derived.recipe).expanduser()).absolute()),
        recipe_sha256=derived.recipe_sha256,
        sha256=derived.sha256,
    )


def _last_part(member: str) -> str:
    return member.rstrip("/").rpartition("/")[2]
