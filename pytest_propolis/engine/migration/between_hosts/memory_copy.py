"""The memory of a guest, copied from file to file while the guest runs, and for the rest once it is stopped.

QEMU's own pre-copy relies on its record of the pages that a guest has written, which its emulator does not always keep
(`memory_transfer`). Here the pages themselves are compared, with digests of what the target has: whatever wrote them,
once the guest stands still the last pass finds each difference.

Both sides have the memory in a file, which their QEMUs map. A message of the source is frames: an offset, a length and
that many bytes. One of length 0 is alone in its message, and ends a pass. Its offset is 1 for the last pass. After
every other one the target answers when it has written the pass.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Generator, Iterator
from typing import Final

from ....operating_system.read_ahead import read_ahead
from ..failure import MigrationFailed
from ..protocol import Connection, ConnectionLost

__all__ = ["MEMORY_STREAM", "MemoryReceiver", "MemorySender"]

MEMORY_STREAM: Final = "memory"
"""The name of the websocket that carries a guest's memory."""

BLOCK_BYTES: Final = 16 << 10
"""What is compared and sent as a whole. Smaller blocks take longer to hash, larger ones to send."""

CHUNK_BYTES: Final = 1 << 20
ZEROS: Final = bytes(BLOCK_BYTES)
FRAME: Final = struct.Struct(">QI")

PASSES: Final = 6
SMALL_REST_BYTES: Final = 4 << 20
"""What a pass may have found for the guest to be stopped after it: the next one finds about as much."""


class MemorySender:
    """The source's side.

    :param descriptor: the file, which stays the caller's.
    :param connection: stays the caller's.
    """

    def __init__(self, descriptor: int, connection: Connection) -> None:
        self._descriptor = descriptor
        self._connection = connection
        self._digests: dict[int, bytes] = {}
        self.carried_bytes = 0

    async def copy_while_running(self) -> None:
        """Copy what the guest has written, again and again, until little is found or no longer less than before.

        :raises MigrationFailed: when the target has left.
        """
        found = await self._pass(last=False)
        for _ in range(PASSES - 1):
            before, found = found, await self._pass(last=False)
            if found <= SMALL_REST_BYTES or found > before // 2:
                return

    async def copy_rest(self) -> None:
        """Copy what differs yet, of a guest that is stopped.

        :raises MigrationFailed: when the target has left.
        """
        await self._pass(last=True)

    async def _pass(self, *, last: bool) -> int:
        """Send what differs, and return how much that was."""
        found = 0
        try:
            async with read_ahead(_differences(self._descriptor, self._digests)) as messages:
                async for message in messages:
                    await self._connection.send(message)
                    found += len(message)
            await self._connection.send(FRAME.pack(int(last), 0))
            if not last:
                await self._connection.receive()
        except ConnectionLost as error:
            raise MigrationFailed(f"the target takes no more memory{f': {error}' if str(error) else ''}") from None
        finally:
            self.carried_bytes += found
        return found


class MemoryReceiver:
    """The target's side.

    :param descriptor: the file, which stays the caller's; it has the memory's size.
    :param connection: becomes this object's.
    """

    def __init__(self, descriptor: int, connection: Connection) -> None:
        self._descriptor = descriptor
        self._connection = connection
        self.carried_bytes = 0

    async def receive(self) -> None:
        """Write what the source sends, to the end of its last pass.

        :raises MigrationFailed: when the source has left before.
        """
        size = os.fstat(self._descriptor).st_size
        try:
            while True:
                message = await self._connection.receive()
                assert isinstance(message, bytes)
                self.carried_bytes += len(message)
                if len(message) != FRAME.size:
                    self._write(message, size)
                elif FRAME.unpack(message)[0]:
                    return
                else:
                    await self._connection.send(b"\0")
        except ConnectionLost as error:
            reason = f": {error}" if str(error) else ""
            raise MigrationFailed(f"the source has left while it sent the guest's memory{reason}") from None
        except OSError as error:
            raise MigrationFailed(f"the guest's memory cannot be written here: {error.strerror}") from None

    def _write(self, message: bytes, size: int) -> None:
        view, position = memoryview(message), 0
        while position < len(message):
            try:
                offset, length = FRAME.unpack_from(message, position)
            except struct.error:
                length = -1
            position += FRAME.size
            if length < 0 or offset + length > size or position + length > len(message):
                raise MigrationFailed("the source sent memory that the guest does not have here")
            left = view[position : position + length]
            position += length
            while left:
                written = os.pwrite(self._descriptor, left, offset)
                left, offset = left[written:], offset + written

    async def close(self) -> None:
        """End the stream. Idempotent."""
        await self._connection.close("")


def _differences(descriptor: int, digests: dict[int, bytes]) -> Generator[bytes, None, None]:
    """Yield messages with the blocks of a file whose digests are not those given, and correct these.

    :param digests: by offset. A block that has none is zeros at the target.
    """
    message, end = bytearray(), -1
    length_at = 0
    for offset, block in _changed_blocks(descriptor, digests):
        if offset != end:
            length_at = len(message) + 8
            message += FRAME.pack(offset, 0)
        message += block
        end = offset + len(block)
        struct.pack_into(">I", message, length_at, len(message) - length_at - 4)
        if len(message) >= CHUNK_BYTES:
            yield bytes(message)
            message, end = bytearray(), -1
    if message:
        yield bytes(message)


def _changed_blocks(descriptor: int, digests: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    for start, chunk in _chunks(descriptor, {offset // CHUNK_BYTES * CHUNK_BYTES for offset in digests}):
        for begin in range(0, len(chunk), BLOCK_BYTES):
            block = chunk[begin : begin + BLOCK_BYTES]
            digest = b"" if block == ZEROS[: len(block)] else hashlib.sha256(block).digest()
            if digests.get(start + begin, b"") != digest:
                digests[start + begin] = digest
                yield start + begin, block


def _chunks(descriptor: int, known: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks of a file in which there is data, and those that were known to have some."""
    size = os.fstat(descriptor).st_size
    data_at = -1
    for start in range(0, size, CHUNK_BYTES):
        if data_at < start:
            data_at = _next_data(descriptor, start, size)
        if data_at < start + CHUNK_BYTES or start in known:
            yield start, os.pread(descriptor, CHUNK_BYTES, start)


def _next_data(descriptor: int, start: int, size: int) -> int:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError:  # only a hole is left
        return size
