"""Files of templates and prepared images: what they contain, and how they come into their place."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from ...agent_api.derived import SentDerived, SentFile
from ...errors import ArtifactCorrupt, TemplateError
from ...storage.file_stream import digest
from ...storage.files import move
from ...storage.images.image_content import content_digest

__all__ = ["digest_of_content", "move_to", "sent_file"]


def digest_of_content(file: str) -> str:
    """Return what `content_digest` does. A file is read once, unless it changes.

    :raises TemplateError: when it cannot be read.
    """
    try:
        status = Path(file).stat()
        return _content_then(file, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ArtifactCorrupt) as error:
        raise TemplateError(f"{file} cannot be read: {error}") from None


async def sent_file(path: Path) -> SentFile:
    """Return what another host needs to fetch a file.

    :raises OSError: when it cannot be read.
    """
    status = path.stat()
    found = await asyncio.to_thread(_digest_then, path, status.st_ino, status.st_size, status.st_mtime_ns)
    return SentFile(name=path.name, path=str(path), size=status.st_size, digest=found)


async def move_to(directory: Path, sent: SentDerived) -> None:
    """Move fetched files to a directory.

    :raises OSError: when one is missing, or there is no space.
    """
    for file in sent.files:
        await move(Path(file.path), directory / Path(file.name).name)


@functools.lru_cache(maxsize=256)
def _content_then(file: str, _inode: int, _size: int, _modified_ns: int) -> str:
    """Return the digest of a file's content as it was: the templates of a run are made of few files."""
    return content_digest(Path(file))


@functools.lru_cache(maxsize=256)
def _digest_then(path: Path, _inode: int, size: int, _modified_ns: int) -> str:
    with path.open("rb") as file:
        return digest(file.fileno(), size)
