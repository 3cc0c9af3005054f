"""Write a download and hash it while more of it comes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

__all__ = ["HashingWriter"]

BLOCK_BYTES: Final = 1 << 20


class HashingWriter:
    """A file that is written and hashed by a thread, one block at a time, while the caller gets the next one.

    Open it with `open`; what was given to `write` is in the file when the block has ended, however it ends.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._block = bytearray()
        self._work: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, append: bool) -> AsyncIterator[HashingWriter]:
        """Open a file.

        :param append: keep the content that it has, which is hashed first.
        :raises OSError: when it cannot be written.
        """
        with path.open("r+b" if append else "wb") as file:
            writer = cls(file)
            await asyncio.to_thread(writer._hash_content)
            try:
                yield writer
            finally:
                await asyncio.shield(writer._finish())

    @property
    def sha256(self) -> str:
        """The hash of the whole file, in lowercase hexadecimal, when the block has ended."""
        return self._digest.hexdigest()

    async def write(self, data: bytes) -> None:
        """
        :raises OSError: when a part cannot be written; that may be of an earlier call.
        """
        self._block += data
        if len(self._block) >= BLOCK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        await self._wait_for_write()
        block, self._block = self._block, bytearray()
        self._work = asyncio.get_running_loop().run_in_executor(None, self._add, block)

    async def _wait_for_write(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            await work

    async def _finish(self) -> None:
        await self._flush()
        await self._wait_for_write()

    def _add(self, block: bytearray) -> None:
        self._file.write(block)
        self._digest.update(block)

    def _hash_content(self) -> None:
        while block := self._file.read(BLOCK_BYTES) if self._file.readable() else b"":
            self._digest.update(block)
