"""FAT12 file systems: small disks that any guest and any firmware can read.

The layout is that of PHD's disks: sectors and clusters of 512 bytes, two allocation tables, files in the root directory
only, and a geometry of one track, because some guests compute sizes from it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from ...errors import ConfigError

__all__ = ["LARGEST_BYTES", "SMALLEST_BYTES", "fat12_image"]

SECTOR: Final = 512
SMALLEST_BYTES: Final = 42 * SECTOR
LARGEST_BYTES: Final = 1 << 20

TABLES: Final = 2
ROOT_ENTRIES: Final = 512
ENTRY_BYTES: Final = 32
ROOT_SECTORS: Final = ROOT_ENTRIES * ENTRY_BYTES // SECTOR
FIRST_CLUSTER: Final = 2

LABEL_CHARACTERS: Final = 11
IN_LABELS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
NAME_CHARACTERS: Final = 255
NAME_PART_CHARACTERS: Final = 13
FORBIDDEN: Final = frozenset('"*/:<>?\\|') | frozenset(map(chr, (*range(32), 127)))
SHORT: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")

IS_LABEL: Final = 0x08
IS_NAME_PART: Final = 0x0F
IS_FILE: Final = 0x20
FIRST_DAY: Final = 1 << 5 | 1
"""1980-01-01: the same files always make the same image."""


def fat12_image(files: Mapping[str, bytes], *, size_bytes: int, label: str) -> bytes:
    """Return a file system with these files in its root directory.

    :param files: contents by name.
    :param size_bytes: a multiple of 512, from `SMALLEST_BYTES` to `LARGEST_BYTES`.
    :param label: 1 to 11 capital letters, digits, ``-`` and ``_``.
    :raises ConfigError: when a name cannot be on a FAT file system, or the files do not fit.
    """
    if not (0 < len(label) <= LABEL_CHARACTERS and set(label) <= IN_LABELS):
        raise ConfigError(f"label is {label!r}", hint="use 1 to 11 capital letters, digits, '-' and '_'")
    sectors = size_bytes // SECTOR
    table_sectors = _table_sectors(sectors)
    root = bytearray(_label_entry(label))
    table = [0xFF8, 0xFFF]
    data = bytearray()
    for entries, contents in _entries(files, table):
        root += entries
        data += contents.ljust(-(-len(contents) // SECTOR) * SECTOR, b"\0")
    if len(root) > ROOT_SECTORS * SECTOR:
        raise ConfigError(
            f"the names of {len(files)} files fill more than the {ROOT_ENTRIES} entries of the root directory",
            hint="use fewer files, or shorter names",
        )
    free = (sectors - 1 - TABLES * table_sectors - ROOT_SECTORS) * SECTOR
    if len(data) > free:
        raise ConfigError(
            f"the files need {len(data)} bytes in sectors of {SECTOR}, and {free} are free",
            hint=f"use less, or a larger disk: at most {LARGEST_BYTES} bytes",
        )
    volume_id = zlib.crc32(data, zlib.crc32(root))
    tables = _packed(table).ljust(table_sectors * SECTOR, b"\0") * TABLES
    image = _boot_sector(sectors, table_sectors, volume_id, label) + tables
    return b"".join((image, root.ljust(ROOT_SECTORS * SECTOR, b"\0"), data.ljust(free, b"\0")))


def _table_sectors(sectors: int) -> int:
    """Return the sectors of one allocation table: 12 bits for each cluster, and for the two that do not exist."""
    table = 1
    while (sectors - 1 - TABLES * table - ROOT_SECTORS + FIRST_CLUSTER) * 3 > table * SECTOR * 2:
        table += 1
    return table


def _entries(files: Mapping[str, bytes], table: list[int]) -> Iterator[tuple[bytes, bytes]]:
    """Each file's directory entries and contents; its clusters are added to the table."""
    taken: set[bytes] = set()
    known: dict[str, str] = {}
    for name, contents in files.items():
        _require_name(name)
        if (other := known.setdefault(name.casefold(), name)) != name:
            raise ConfigError(f"{name!r} and {other!r} are one name on a FAT file system", hint="rename one of them")
        short = _short_name(name, taken)
        taken.add(short)
        clusters = -(-len(contents) // SECTOR)
        first = len(table) if clusters else 0
        table.extend(range(first + 1, first + clusters))
        if clusters:
            table.append(0xFFF)
        dates = (0, FIRST_DAY, FIRST_DAY, 0, 0, FIRST_DAY)
        entry = struct.pack("<11sBBBHHHHHHHI", short, IS_FILE, 0, 0, *dates, first, len(contents))
        yield _name_parts(name, short) + entry, contents


def _require_name(name: str) -> None:
    """
    :raises ConfigError: when a FAT file system cannot have a file of this name in its root directory.
    """
    if "/" in name:
        raise ConfigError(f"{name!r} is in a directory", hint="all files are in the root directory")
    if not name.strip(". ") or name[-1] in ". ":
        raise ConfigError(f"{name!r} is not a name on a FAT file system", hint="end it with another character")
    if bad := sorted(FORBIDDEN.intersection(name)):
        raise ConfigError(f"{name!r} has {bad[0]!r}, which FAT does not allow", hint="leave it out")
    if len(name.encode("utf-16-le")) > NAME_CHARACTERS * 2:
        raise ConfigError(f"{name[:20]!r}… is longer than {NAME_CHARACTERS} characters", hint="shorten it")


def _short_name(name: str, taken: set[bytes]) -> bytes:
    """Return the name in 8 and 3 characters, as another file has not; numbered if it says less than the long one."""
    stem, dot, ending = name.upper().rpartition(".")
    if not dot:
        stem, ending = ending, ""
    base = "".join(character for character in stem if character in SHORT)
    suffix = "".join(character for character in ending if character in SHORT)[:3]
    is_whole = (base, suffix) == (stem, ending) and len(base) <= 8
    number = 0
    while True:
        tail = f"~{number}" if number else ""
        short = f"{base[: 8 - len(tail)]}{tail}".ljust(8).encode() + suffix.ljust(3).encode()
        if (number or (is_whole and base)) and short not in taken:
            return short
        number += 1


def _name_parts(name: str, short: bytes) -> bytes:
    """Return the entries of the name as it is, the last part first; none if the short one is the same."""
    if name.encode() == short[:8].rstrip() + (b"." + short[8:].rstrip() if short[8:].strip() else b""):
        return b""
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7) + (checksum >> 1) + byte & 0xFF
    units = name.encode("utf-16-le")
    size = NAME_PART_CHARACTERS * 2
    parts = [units[start : start + size] for start in range(0, len(units), size)]
    if len(parts[-1]) < size:
        parts[-1] = (parts[-1] + b"\0\0").ljust(size, b"\xff")
    entries = [
        struct.pack("<B10sBBB12sH4s", number, part[:10], IS_NAME_PART, 0, checksum, part[10:22], 0, part[22:])
        for number, part in enumerate(parts, start=1)
    ]
    entries[-1] = bytes([entries[-1][0] | 0x40]) + entries[-1][1:]
    return b"".join(reversed(entries))


def _label_entry(label: str) -> bytes:
    return struct.pack("<11sB10xHHHI", label.ljust(LABEL_CHARACTERS).encode(), IS_LABEL, 0, FIRST_DAY, 0, 0)


def _packed(table: list[int]) -> bytes:
    """Two entries of 12 bits in three bytes."""
    pairs = zip(table[::2], [*table[1::2], 0], strict=False)
    return b"".join((low | high << 12).to_bytes(3, "little") for low, high in pairs)


def _boot_sector(sectors: int, table_sectors: int, volume_id: int, label: str) -> bytes:
    sector = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s",
        *(b"\xeb\x3c\x90", b"PROPOLIS"),
        *(SECTOR, 1, 1, TABLES, ROOT_ENTRIES, sectors, 0xF8, table_sectors),
        *(sectors, 1),  # one track
        *(0, 0, 0x80, 0, 0x29, volume_id, label.ljust(LABEL_CHARACTERS).encode(), b"FAT12   "),
    )
    return sector.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
