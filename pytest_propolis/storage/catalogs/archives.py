"""Extraction from archives: tar, however it is compressed, and zip."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

from ...errors import ArtifactCorrupt, ArtifactMissing
from ..files import write_all

__all__ = ["extract"]

DAMAGE: Final = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
ENCRYPTED: Final = 1


async def extract(archive: Path, member: str, destination: Path) -> None:
    """Extract one member.

    :raises ArtifactMissing: when the archive has no such member, or it is not a regular file, or encrypted.
    :raises ArtifactCorrupt: when the archive is damaged, or none at all.
    """
    try:
        with _opened(archive, member) as stream:
            await write_all(stream, destination)
    except DAMAGE as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(archive, error) from None  # gzip and bz2 have no error of their own


def _damaged(archive: Path, error: Exception) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"{archive.name} is damaged: {error}", hint="get the archive again")


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            names = {_plain(info.filename): info for info in zipped.infolist() if not info.is_dir()}
            if (found := names.get(_plain(member))) is None:
                raise _missing(archive, member)
            if stat.S_IFMT(found.external_attr >> 16) not in (0, stat.S_IFREG):
                raise _not_plain(archive, member)
            if found.flag_bits & ENCRYPTED:
                raise ArtifactMissing(f"{member} in {archive.name} is encrypted", hint="use one without a password")
            with zipped.open(found) as stream:
                yield stream
        return
    with tarfile.open(archive) as tar:
        for info in tar:
            if _plain(info.name) == _plain(member):
                if not info.isreg():
                    raise _not_plain(archive, member)
                content = tar.extractfile(info)
                assert content is not None
                with content:
                    yield content
                return
    raise _missing(archive, member)


def _plain(name: str) -> str:
    return str(PurePosixPath(name))


def _not_plain(archive: Path, member: str) -> ArtifactMissing:
    return ArtifactMissing(f"{member} in {archive.name} is not a regular file", hint="name another member")


def _missing(archive: Path, member: str) -> ArtifactMissing:
    return ArtifactMissing(f"{archive.name} has no {member}", hint="correct the name of the member")
