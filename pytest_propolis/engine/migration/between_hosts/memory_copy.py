"""The memory of a guest, copied into the target's file while the guest runs, and for the rest once it is stopped.

QEMU's own pre-copy relies on its record of the pages that a guest has written, which its emulator does not always keep
(`transfer.py`). Here the pages themselves are compared, with digests of what the target has: whatever wrote them,
once the guest stands still the last pass finds each difference.

The target has the memory in a file, which its QEMU maps, and the source reads its own (`memory_contents`). A message of
the source is frames: an offset, a length and that many bytes. One of length 0 is alone in its message, and ends a pass.
Its offset is 1 for the last pass. After every other one the target answers when it has written the pass.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Generator, Iterator
from typing import Final

from ....operating_system.read_ahead import read_ahead
from ..failure import MigrationFailed
from ..protocol import Connection, ConnectionLost
from .memory_contents import CHUNK_BYTES, KnownBlocks, MemoryContents

__all__ = ["MEMORY_STREAM", "MemoryReceiver", "MemorySender"]

MEMORY_STREAM: Final = "memory"
"""The name of the websocket that carries a guest's memory."""

BLOCK_BYTES: Final = 16 << 10
"""What is compared and sent as a whole by default. Smaller blocks take longer to hash, larger ones to send."""

FRAME: Final = struct.Struct(">QI")

PASSES: Final = 6
SMALL_REST_BYTES: Final = 4 << 20
"""What a pass may have found for the guest to be stopped after it: the next one finds about as much."""


class MemorySender:
    """The source's side.

    :param contents: the memory, which stays the caller's.
    :param connection: stays the caller's.
    :param block_bytes: what is compared and sent as a whole.
    """

    def __init__(self, contents: MemoryContents, connection: Connection, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._contents = contents
        self._connection = connection
        self.known = KnownBlocks(contents.size, block_bytes)
        """What the target has when it has received what was sent."""
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

    async def leave_rest(self) -> None:
        """End the passes, and leave it to QEMU to send the rest of a guest that is stopped.

        :raises MigrationFailed: when the target has left.
        """
        with _target_left():
            await self._connection.send(FRAME.pack(int(True), 0))

    async def _pass(self, *, last: bool) -> int:
        """Send what differs, and return how much that was."""
        found = 0
        try:
            with _target_left():
                async with read_ahead(_differences(self._contents, self.known)) as messages:
                    async for message in messages:
                        await self._connection.send(message)
                        found += len(message)
                await self._connection.send(FRAME.pack(int(last), 0))
                if not last:
                    await self._connection.receive()
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


@contextlib.contextmanager
def _target_left() -> Iterator[None]:
    try:
        yield
    except ConnectionLost as error:
        raise MigrationFailed(f"the target takes no more memory{f': {error}' if str(error) else ''}") from None


def _differences(contents: MemoryContents, known: KnownBlocks) -> Generator[bytes, None, None]:
    """Yield messages with the blocks that the target does not have, which are known as the target's from then on.

    :raises MigrationFailed: when the memory cannot be read.
    """
    message, end = bytearray(), -1
    length_at = 0
    for offset, block in _changed_blocks(contents, known):
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


def _changed_blocks(contents: MemoryContents, known: KnownBlocks) -> Iterator[tuple[int, bytes]]:
    try:
        for start, chunk in contents.chunks(known.chunks):
            for begin in range(0, len(chunk), known.block_bytes):
                block = chunk[begin : begin + known.block_bytes]
                if known.take(start + begin, block):
                    yield start + begin, block
    except OSError as error:
        raise MigrationFailed(f"the guest's memory cannot be read here: {error.strerror or error}") from None
