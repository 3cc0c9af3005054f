"""The memory of a guest that leaves for another host, where the source's server copies it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Self

from ....agent_api.migration_report import MemoryTransfer
from ...qemu.devices.host_file import HostFile
from ..failure import MigrationFailed
from .memory_contents import FileMemory, MemoryContents
from .memory_copy import MEMORY_STREAM, MemorySender
from .private_memory import PrivateMemory
from .remote_streams import StreamExchange
from .state_filter import PAGE_BYTES, StateFilter

__all__ = ["DepartingMemory"]


class DepartingMemory:
    """Copies the memory as the target has decided, if it is to be copied by the servers. Open it with `of`.

    :param file: where it is, if it is in a file that another QEMU may map.
    :param private: where it is otherwise, if this process may read it there.
    """

    def __init__(self, file: HostFile | None, private: PrivateMemory | None) -> None:
        self._file = file
        self._private = private
        self._descriptor: int | None = None
        self._sender: MemorySender | None = None
        self._is_left_to_qemu = False

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, file: HostFile | None, *, pid: int | None, size: int) -> AsyncIterator[Self]:
        """Yield the memory of a machine, for the length of the block.

        :param pid: QEMU's.
        :param size: in bytes.
        """
        in_process = file is None and pid is not None
        private = await asyncio.to_thread(PrivateMemory.of, pid or 0, size) if in_process else None
        memory = cls(file, private)
        try:
            yield memory
        finally:
            memory._close()

    @property
    def is_read_in_process(self) -> bool:
        """Whether it is in no file, and can be read."""
        return self._private is not None

    @property
    def carried_bytes(self) -> int:
        return self._sender.carried_bytes if self._sender else 0

    async def start(self, transfer: MemoryTransfer, streams: StreamExchange) -> Callable[[bytes], bytes] | None:
        """Prepare to copy it, and return what the stream of QEMU's state is to be passed through, if anything.

        :raises MigrationFailed: when it cannot be copied so, or the target does not open its stream.
        """
        if transfer is MemoryTransfer.COPIED_IN_PASSES:
            await self._start(self._open(), streams)
        elif transfer is MemoryTransfer.COPIED_AHEAD:
            sender = await self._start(self._private, streams, block_bytes=PAGE_BYTES)
            self._is_left_to_qemu = True
            return StateFilter(sender.known).feed
        return None

    async def copy_while_running(self) -> None:
        """Copy it while the guest runs, as often as that is of use.

        :raises MigrationFailed: when it cannot be read, or the target has left.
        """
        if self._sender is not None:
            await self._sender.copy_while_running()
            if self._is_left_to_qemu:
                await self._sender.leave_rest()

    async def copy_rest(self) -> None:
        """Copy what differs yet, of a guest that is stopped, unless QEMU sends that.

        :raises MigrationFailed: as `copy_while_running`.
        """
        if self._sender is not None and not self._is_left_to_qemu:
            await self._sender.copy_rest()

    async def _start(self, contents: MemoryContents | None, streams: StreamExchange, **options: int) -> MemorySender:
        if contents is None:
            raise MigrationFailed("the target wants to copy memory that cannot be read at the source")
        self._sender = MemorySender(contents, await streams.take_connection(MEMORY_STREAM), **options)
        return self._sender

    def _open(self) -> FileMemory | None:
        self._descriptor = self._file.open(os.O_RDONLY) if self._file else None
        return None if self._descriptor is None else FileMemory(self._descriptor)

    def _close(self) -> None:
        if self._private is not None:
            self._private.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
