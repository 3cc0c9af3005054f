"""Files that another artifact holds compressed with gzip."""

from __future__ import annotations

from pathlib import Path
from typing import IO, cast

import msgspec

from ...errors import ArtifactCorrupt, ArtifactError
from ...field_checks import check_fields
from ..files import write_all
from ..sources import LocalFile, WheelMember
from .remote_file import RemoteFile

__all__ = ["UnpackedFile", "unpack"]


class UnpackedFile(msgspec.Struct, frozen=True, tag="unpacked-file"):
    """The content of a file that is compressed with gzip, unpacked once on the host and not by each guest.

    :param base: where the compressed file comes from.
    :param base_name: its file name.
    :param base_sha256: its hash; None for a local file that is not verified.
    :raises ArtifactError: when a field has a wrong type.
    """

    base: LocalFile | WheelMember | RemoteFile
    base_name: str
    base_sha256: str | None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"unpacked {self.base_name!r}", error=ArtifactError)

    def __str__(self) -> str:
        return f"{self.base}, unpacked"


async def unpack(compressed: Path, destination: Path) -> None:
    """Write what a file holds that is compressed with gzip.

    :raises ArtifactCorrupt: when the file is damaged, or is not compressed with gzip.
    """
    import gzip  # here, because a process that has the file does not need it
    import zlib

    try:
        with gzip.open(compressed) as stream:
            await write_all(cast("IO[bytes]", stream), destination)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ArtifactCorrupt(f"{compressed.name} is damaged: {error}", hint="get the file again") from None
