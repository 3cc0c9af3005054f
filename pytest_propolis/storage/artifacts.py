"""Artifacts: files from which virtual machines are built, identified by their content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from ..errors import ArtifactError
from ..field_checks import check_fields
from .catalogs.derived_file import CatalogSource
from .debian import DebianBuild

__all__ = ["Artifact", "ArtifactSource", "checked_name"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


ArtifactSource: TypeAlias = CatalogSource | DebianBuild
"""Where the content of an artifact comes from.

An artifact travels to the agent of its host as a message, so this set is closed. `ArtifactStore` uses a local file in
place, builds a Debian system, extracts a member of an archive, runs a recipe, unpacks a file, and has all others fetch
theirs."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file, its content, and its source.

    :param key: a readable name: ``alpine-3.23-kernel``.
    :param filename: the name of the file in the store.
    :param sha256: the hash of the content, in lowercase hexadecimal; None for content used unverified: a
        `LocalFile`, or a file built on this machine.
    :param source: where the content comes from.
    :raises ArtifactError: when a field has a wrong type, ``filename`` is not one plain name, or ``sha256`` is not a
        SHA-256.
    """

    key: str
    filename: str
    sha256: str | None
    source: ArtifactSource

    def __post_init__(self) -> None:
        check_fields(self, subject=f"artifact {self.key}", error=ArtifactError)
        checked_name(self.filename, what=f"artifact {self.key}: file name")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ArtifactError(
                f"artifact {self.key}: {self.sha256!r} is not a SHA-256",
                hint="write 64 lowercase hexadecimal digits, as sha256sum prints them",
            )


def checked_name(name: str, *, what: str) -> str:
    """Return ``name`` if it is valid for a file in the store: it cannot escape its directory, and is not hidden.

    :raises ArtifactError: when it may not.
    """
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"{what} {name!r} cannot name a file in the store",
            hint="use letters, digits, '.', '_', '+' and '-', and begin with a letter or a digit",
        )
    return name
