"""The content of a disk image, wherever it lies: an overlay names its backing file by a path of its host."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO, Final

from ..file_stream import data_blocks, digest
from .image_headers import HEAD_BYTES, Qcow2Header

__all__ = ["content_digest"]

_CLUSTER_BITS: Final = struct.Struct(">20xI")
_HEAD_CLUSTER_BITS: Final = 16
_FIELDS: Final = slice(20, 100)
"""The fields of the header between the name of the backing file and the header's own length: others are written anew
when the image is put on another backing file."""


def content_digest(image: Path) -> str:
    """Return a digest of what an image contains, with its backing files; of any other file, `file_stream.digest`.

    Overlays that differ in the path of the backing file alone have the same digest.

    :raises OSError: when a file cannot be read.
    :raises ArtifactCorrupt: when a header is inconsistent.
    """
    header = Qcow2Header.read(image)
    with image.open("rb") as file:
        if header is None or header.backing is None or not _has_head_cluster(file):
            return digest(file.fileno(), image.stat().st_size)
        found = hashlib.sha256(_own_content(file, image.stat().st_size))
    found.update(content_digest(image.parent / header.backing).encode())
    return found.hexdigest()


def _has_head_cluster(file: BinaryIO) -> bool:
    """Return whether the header has all that this module takes for it to itself."""
    (cluster_bits,) = _CLUSTER_BITS.unpack(file.read(_CLUSTER_BITS.size))
    return bool(cluster_bits >= _HEAD_CLUSTER_BITS)


def _own_content(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    found = hashlib.sha256(file.read(HEAD_BYTES)[_FIELDS])
    for offset, data in data_blocks(file.fileno(), size, HEAD_BYTES):
        found.update(b"%d %d\n" % (offset, len(data)))
        found.update(data)
    return found.digest()
