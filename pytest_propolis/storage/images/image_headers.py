"""Headers of disk images: the container format, and the other files that a qcow2 image references.

They are parsed here and not by ``qemu-img``, which opens any file or address that an image names (CVE-2024-44082).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from ...errors import ArtifactCorrupt

__all__ = ["Qcow2Header", "container_of"]

HEAD_BYTES: Final = 1 << 16
"""All of a qcow2 header is in the image's first cluster; QEMU makes none larger than 2 MiB, and ours have 64 KiB."""

_QCOW2: Final = b"QFI\xfb"
_SIGNATURES: Final = (
    (0, _QCOW2, "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"BZh", "bzip2"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"PK\x03\x04", "zip"),
)
_FIXED: Final = struct.Struct(">4sIQIIQ")
_VERSION_3: Final = struct.Struct(">72xQQQII")
_EXTENSION: Final = struct.Struct(">II")
_DATA_FILE: Final = 0x44415441
_DATA_FILE_BIT: Final = 1 << 2


def container_of(head: bytes) -> str | None:
    """Return the container format that the header indicates; None if it may be a raw disk.

    :param head: the first 512 bytes or more, or all of a shorter file.
    """
    found = (name for offset, signature, name in _SIGNATURES if head[offset:].startswith(signature))
    return next(found, None)


class Qcow2Header(msgspec.Struct, frozen=True):
    """The header of a qcow2 image.

    :param size_bytes: the size of the disk that a guest sees.
    :param backing: the name of its backing file, exactly as stored.
    :param data_file: the name of its external data file, exactly as stored; empty if there is none.
    """

    size_bytes: int
    backing: str | None = None
    data_file: str | None = None

    @classmethod
    def read(cls, image: Path) -> Self | None:
        """Return the header of an image; None if it is not a qcow2 image.

        :raises OSError: if it cannot be read.
        :raises ArtifactCorrupt: if its header is inconsistent.
        """
        with image.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if not head.startswith(_QCOW2):
            return None
        try:
            return cls._parse(head)
        except (struct.error, ValueError):
            raise ArtifactCorrupt(
                f"disk image {image} is broken: its qcow2 header is invalid", hint="get the image again"
            ) from None

    @classmethod
    def _parse(cls, head: bytes) -> Self:
        _, version, backing_at, backing_bytes, _, size_bytes = _FIXED.unpack_from(head)
        backing = _name(head, backing_at, backing_bytes) if backing_at else None
        if version < 3:
            return cls(size_bytes, backing)
        incompatible, *_, length = _VERSION_3.unpack_from(head)
        if length > len(head):
            raise ValueError
        extensions = dict(_extensions(head, length, backing_at or len(head)))
        named = extensions.get(_DATA_FILE)
        data_file = named.decode("utf-8", "surrogateescape") if named is not None else ""
        return cls(size_bytes, backing, data_file if incompatible & _DATA_FILE_BIT else None)

    @property
    def references(self) -> tuple[str, ...]:
        """The names of all other files that it references."""
        return tuple(name for name in (self.backing, self.data_file) if name is not None)


def _name(head: bytes, offset: int, length: int) -> str:
    if offset + length > len(head):
        raise ValueError
    return head[offset : offset + length].decode("utf-8", "surrogateescape")


def _extensions(head: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    while offset + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(head, offset)
        offset += _EXTENSION.size
        if kind == 0:
            return
        if offset + length > len(head):
            raise ValueError
        yield kind, head[offset : offset + length]
        offset += (length + 7) & ~7
