"""Streams of bytes over the serial console: packed, one at a time, with the guest's POSIX shell at the other end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from ..shell import Shell
from ..shell_protocol import new_nonce
from .channel import Exchanged
from .packing import Unpacker, packed, receiving_command, sending_command, unpacked_end

__all__ = ["ConsoleChannel"]

STALL_S: Final = 60.0
"""How long nothing may move. A guest that looks for its first byte, or writes to a slow disk, is silent meanwhile."""


class ConsoleChannel:
    """The `ByteChannel` that every guest has. It needs `base64`, `gzip` and `head` there."""

    block_bytes: int | None = 1 << 18

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def upload(self, command: str, source: AsyncIterator[bytes], *, note: str) -> Exchanged:
        nonce = new_nonce(interactive=True)  # its standard input is the terminal
        output = bytearray()
        status = await self._shell.stream(
            receiving_command(command, nonce),
            nonce,
            typed=packed(source),
            sink=output.extend,
            stall_s=STALL_S,
            note=note,
        )
        return unpacked_end(bytes(output), status)

    async def download(self, command: str, sink: Callable[[bytes], None], *, note: str) -> Exchanged:
        unpacker = Unpacker(sink)
        await self._shell.stream(
            sending_command(command), new_nonce(), sink=unpacker.feed, binary=True, stall_s=STALL_S, note=note
        )
        return unpacker.end()
