"""The contents of a guest's memory as the source's server reads them, and digests of what the target has."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["CHUNK_BYTES", "FileMemory", "KnownBlocks", "MemoryContents", "data_chunks"]

CHUNK_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = 32
NO_DATA: Final = bytes(DIGEST_BYTES)


class MemoryContents(Protocol):
    """The contents of a guest's memory, which may change while they are read."""

    @property
    def size(self) -> int: ...

    def chunks(self, known: set[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the aligned chunks that may have data, and those that are known to have had some, with their offsets.

        :param known: offsets of chunks.
        :raises OSError: when they cannot be read.
        """


@dataclass(frozen=True, slots=True)
class FileMemory:
    """Memory in a file.

    :param descriptor: the file, which stays the caller's.
    """

    descriptor: int

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def chunks(self, known: set[int]) -> Iterator[tuple[int, bytes]]:
        for start in sorted(known.union(data_chunks(self.descriptor))):
            yield start, os.pread(self.descriptor, CHUNK_BYTES, start)


def data_chunks(descriptor: int) -> Iterator[int]:
    """Yield the offsets of the chunks of a file in which there is data, and not only a hole."""
    start = 0
    with contextlib.suppress(OSError):  # only a hole is left
        while True:
            start = os.lseek(descriptor, start, os.SEEK_DATA) // CHUNK_BYTES * CHUNK_BYTES
            yield start
            start += CHUNK_BYTES


class KnownBlocks:
    """The digests of the blocks of a memory that another one has, which begins as zeros.

    :param size: the memory's, in bytes.
    :param block_bytes: what is compared as a whole.
    """

    def __init__(self, size: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.chunks: set[int] = set()
        """The offsets of chunks that have had data."""
        self._zeros = bytes(block_bytes)
        self._digests = bytearray(size // block_bytes * DIGEST_BYTES)

    def take(self, offset: int, block: bytes) -> bool:
        """Record that the other memory gets a block; return whether it differs from what that had."""
        digest = NO_DATA if block == self._zeros else hashlib.sha256(block).digest()
        at = offset // self.block_bytes * DIGEST_BYTES
        if self._digests[at : at + DIGEST_BYTES] == digest:
            return False
        self._digests[at : at + DIGEST_BYTES] = digest
        self.chunks.add(offset // CHUNK_BYTES * CHUNK_BYTES)
        return True

    def has_zeros(self, offset: int) -> bool:
        """Return whether the other memory has no data in a block."""
        at = offset // self.block_bytes * DIGEST_BYTES
        return self._digests[at : at + DIGEST_BYTES] == NO_DATA
