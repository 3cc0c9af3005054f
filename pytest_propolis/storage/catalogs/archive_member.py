"""Members of archives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from ..sources import LocalFile
from .remote_file import RemoteFile

__all__ = ["ArchiveMember"]


class ArchiveMember(msgspec.Struct, frozen=True, tag="archive-member"):
    """A file in an archive. Only this member is extracted, as a regular file: no path of the archive is used.

    :param archive: where the archive comes from.
    :param archive_name: its file name.
    :param archive_sha256: the hash of the archive; None for a local file that is not verified.
    :param member: the path in it.
    """

    archive: RemoteFile | LocalFile
    archive_name: str
    archive_sha256: str | None
    member: str

    def __str__(self) -> str:
        return f"{self.member} in {self.archive}"

    @property
    def key(self) -> str:
        """Identifies the content."""
        identity = f"{self.archive_sha256 or self.archive}\0{self.member}"
        return f"member-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"

    async def make(self, archive: Path, destination: Path) -> None:
        """Extract this member from the archive, which is here.

        :raises ArtifactMissing: when the archive has no such member, or it is not a regular file, or encrypted.
        :raises ArtifactCorrupt: when the archive is damaged, or none at all.
        """
        from .archives import extract  # here, because most runs extract nothing

        await extract(archive, self.member, destination)
