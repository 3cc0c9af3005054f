"""Empty qcow2 overlays, written without ``qemu-img``, whose start takes longer than all else in making one.

The layout is that of ``qemu-img create``: the header, a refcount table, one refcount block, a level 1 table of zeros.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["write_overlay"]

CLUSTER_BITS: Final = 16
CLUSTER_BYTES: Final = 1 << CLUSTER_BITS
SECTOR_BYTES: Final = 512
HEADER_CLUSTERS: Final = 3
"""Before the level 1 table: header, refcount table, refcount block."""

REFCOUNT_ORDER: Final = 4
ENTRY_BYTES: Final = 8
BYTES_PER_ENTRY: Final = CLUSTER_BYTES // ENTRY_BYTES * CLUSTER_BYTES
"""How much of the disk one entry of the level 1 table stands for."""

LARGEST_LEVEL_1_BYTES: Final = 32 << 20
LONGEST_NAME: Final = 1023
LONGEST_FORMAT: Final = 15
BACKING_FORMAT: Final = 0xE2792ACA
VERSIONS: Final = (2, 3)
CLUSTER_BITS_RANGE: Final = range(9, 22)

_MAGIC: Final = b"QFI\xfb"
_COMMON: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3: Final = struct.Struct(">QQQII8x")
_EXTENSION: Final = struct.Struct(">II")
_ENTRY: Final = struct.Struct(">Q")


def write_overlay(*, backing: Path, overlay: Path, backing_format: str, size_bytes: int | None) -> bool:
    """Create an overlay on a raw file, or on a qcow2 image of the usual kind that is no overlay itself.

    :param size_bytes: of the overlay's disk; that of the image by default.
    :returns: False if ``qemu-img`` must do it, or say what is wrong; then nothing has been written.
    """
    try:
        found = _disk_bytes(backing, backing_format)
        if found is None:
            return False
        contents = _contents(str(backing.absolute()), backing_format, found if size_bytes is None else size_bytes)
        if contents is None:
            return False
        clusters, length_bytes = contents
        file = overlay.open("xb")
    except OSError:
        return False
    try:
        with file:
            for number, data in enumerate(clusters):
                file.seek(number * CLUSTER_BYTES)
                file.write(data)
            file.truncate(length_bytes)
    except OSError:
        overlay.unlink()
        return False
    return True


def _disk_bytes(image: Path, image_format: str) -> int | None:
    """Return the size of the disk in an image; None if it is not of the usual kind."""
    with image.open("rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            return None
        if image_format == "raw":
            return facts.st_size
        return _qcow2_bytes(file, facts.st_size) if image_format == "qcow2" else None


def _qcow2_bytes(file: BinaryIO, file_bytes: int) -> int | None:
    head = file.read(_COMMON.size + _VERSION_3.size)
    if len(head) < _COMMON.size + _VERSION_3.size:
        return None
    magic, version, backing_at, _, cluster_bits, size, crypt, level_1_entries, level_1_at, table_at, clusters, *_ = (
        _COMMON.unpack_from(head)
    )
    features = _VERSION_3.unpack_from(head, _COMMON.size)[0] if version > VERSIONS[0] else 0
    if magic != _MAGIC or version not in VERSIONS or cluster_bits not in CLUSTER_BITS_RANGE:
        return None
    ends = (level_1_at + level_1_entries * ENTRY_BYTES, table_at + (clusters << cluster_bits))
    are_tables_there = min(level_1_at, table_at) > 0 and max(ends) <= file_bytes
    return size if are_tables_there and not (backing_at or crypt or features) else None


def _contents(backing: str, backing_format: str, size_bytes: int) -> tuple[tuple[bytes, ...], int] | None:
    """Return the first clusters of an overlay, and its length, to which zeros follow; None if its size is not usual."""
    name, kind = os.fsencode(backing), backing_format.encode()
    size_bytes = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    level_1_entries = -(-size_bytes // BYTES_PER_ENTRY)
    level_1_bytes = level_1_entries * ENTRY_BYTES
    if not 0 < level_1_bytes <= LARGEST_LEVEL_1_BYTES or len(name) > LONGEST_NAME or len(kind) > LONGEST_FORMAT:
        return None
    extensions = _EXTENSION.pack(BACKING_FORMAT, len(kind)) + kind.ljust(-(-len(kind) // 8) * 8, b"\0")
    extensions += _EXTENSION.pack(0, 0)
    header_bytes = _COMMON.size + _VERSION_3.size
    header = _COMMON.pack(
        _MAGIC,
        VERSIONS[-1],
        header_bytes + len(extensions),
        len(name),
        CLUSTER_BITS,
        size_bytes,
        0,  # no encryption
        level_1_entries,
        HEADER_CLUSTERS * CLUSTER_BYTES,
        CLUSTER_BYTES,
        1,
        0,  # no snapshots
        0,
    )
    header += _VERSION_3.pack(0, 0, 0, REFCOUNT_ORDER, header_bytes) + extensions + name
    used_clusters = HEADER_CLUSTERS + -(-level_1_bytes // CLUSTER_BYTES)
    table = _ENTRY.pack(2 * CLUSTER_BYTES)
    counts = struct.pack(">H", 1) * used_clusters
    return (header, table, counts), HEADER_CLUSTERS * CLUSTER_BYTES + level_1_bytes
