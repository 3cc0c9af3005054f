"""A guest port that stays open while its guest runs, and follows the guest when it migrates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Protocol

from ...agent_api.guest_ports import PortEnded
from ...errors import ApiError, PropolisError, ShellLost
from ...propolis_api.connection.byte_stream import ByteStream, StreamEnded
from ..console import Console
from ..following import Sent

__all__ = ["PortLine", "Ports"]

MOVE_TIMEOUT_S: Final = 60.0
"""How long after the end of a connection the guest may take to be elsewhere."""


class Ports(Protocol):
    """The ports of a guest, wherever it is."""

    moves: int
    """How often the guest has migrated."""

    async def connect(self, number: int) -> ByteStream:
        """Open a port where the guest is now."""
        ...

    async def moved_since(self, moves: int) -> None:
        """Wait until the guest has migrated more often than that."""
        ...

    def open_script(self, descriptors: Mapping[int, int]) -> str:
        """Return one line of a script that opens ports in the guest, or ends the script.

        :param descriptors: the descriptor of each, by the number of the port.
        """
        ...


class PortLine:
    """One port as a line: every byte arrives once, in order, also over migrations.

    :param console: the VM's console, whose end is the line's as well.
    :param moves: the guest's migrations when the connection was opened.
    """

    def __init__(self, connection: ByteStream, number: int, ports: Ports, console: Console, moves: int) -> None:
        self.ports = ports
        self.number = number
        self.on_data: Callable[[bytes], None] | None = None
        """Called with what the guest writes; until there is one, that waits."""
        self.on_closed: Callable[[], object] | None = None
        """Called when the guest has closed the port; it is open on this side still."""
        self._connection = connection
        self._console = console
        self._moves = moves
        self._sent = Sent()
        self._kept_from: int | None = None
        """How much had been sent when the guest was known to have moved: what follows has gone nowhere yet."""
        self._turn = asyncio.Lock()
        self._failure: PropolisError | None = None
        self._watchers: set[asyncio.Future[Any]] = set()
        self._companion: PortLine | None = None
        self._follower = asyncio.create_task(self._follow())

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, ports: Ports, number: int, console: Console) -> AsyncIterator[PortLine]:
        """A line over a port, which it opens and closes.

        :raises CapabilityMissing: when the VM has no guest ports.
        """
        moves = ports.moves
        line = cls(await ports.connect(number), number, ports, console, moves)
        try:
            yield line
        finally:
            await line.aclose()

    def listen(self, on_data: Callable[[bytes], None]) -> None:
        """Pass on what the guest writes, and what it has written before the first call."""
        self.on_data = on_data
        self._connection.listen(self._take)

    async def companion(self, number: int) -> PortLine:
        """Return a line over a second port, which is opened by the first call, and closed with this one.

        :raises CapabilityMissing: when the VM has no such port.
        """
        if self._companion is None:
            moves = self.ports.moves
            connection = await self.ports.connect(number)
            self._companion = PortLine(connection, number, self.ports, self._console, moves)
        return self._companion

    async def send(self, data: bytes) -> None:
        """Send to the guest, where it is or where it migrates to; wait while nothing takes it.

        :raises ShellLost: when the port is lost.
        :raises ConsoleClosed: when the VM is gone.
        """
        async with self._turn:
            if self._failure is not None:
                raise self._failure
            if self.ports.moves != self._moves and self._kept_from is None:
                self._kept_from = self._sent.total
            self._sent.append(data)
            if self._kept_from is None:
                with contextlib.suppress(StreamEnded):  # the next connection gets it
                    await self._connection.send(data)

    def on_failure(self, future: asyncio.Future[Any]) -> None:
        """Have a future fail with the line or with the console, if it is not done by then."""
        self._console.transcript.on_failure(future)
        if not future.done():
            self._watchers.add(future)
            future.add_done_callback(self._watchers.discard)

    async def aclose(self) -> None:
        """Close the connection. Idempotent."""
        if self._companion is not None:
            await self._companion.aclose()
        self._connection.abort()  # what waits to be sent has no reader any more
        self._follower.cancel()
        await asyncio.gather(self._follower, return_exceptions=True)

    async def _follow(self) -> None:
        """Go along with the guest whenever it migrates."""
        try:
            while True:
                await asyncio.wait([self._connection.ended])
                end = PortEnded.told_by(self._connection.text)
                if end is not None and end.closed_by_guest and await self._reopen():
                    if self.on_closed is not None:
                        self.on_closed()
                    continue
                if self._failure is not None or not await self._has_moved():
                    break
                await self._reconnect(None if end is None else end.taken)
            self._fail(ShellLost("the guest's port is lost: its connection has ended", vm=self._console.vm))
        except PropolisError as error:
            self._fail(error)

    async def _reopen(self) -> bool:
        """Connect again to a port that the guest has closed; return whether its machine is there still."""
        try:
            await self._reconnect(None)
        except ApiError:
            return False
        return True

    def _take(self, data: bytes) -> None:
        assert self.on_data is not None
        try:
            self.on_data(data)
        except Exception as error:
            self._fail(ShellLost(f"the guest's port could not be read: {error!r}", vm=self._console.vm))
            self._connection.abort()

    async def _has_moved(self) -> bool:
        """Wait until the guest is elsewhere; return whether it is.

        :raises PropolisError: when the VM has ended instead.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._console.transcript.on_failure(ended)
        moved = asyncio.ensure_future(self.ports.moved_since(self._moves))
        try:
            await asyncio.wait([moved, ended], timeout=MOVE_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not moved.done():
                ended.result()
            return moved.done()
        finally:
            moved.cancel()
            ended.cancel()

    async def _reconnect(self, taken: int | None) -> None:
        async with self._turn:
            self._moves = self.ports.moves
            before, self._connection = self._connection, await self.ports.connect(self.number)
            before.abort()
            if self.on_data is not None:
                self.listen(self.on_data)
            sent, self._sent = self._sent, Sent()
            kept_from, self._kept_from = self._kept_from, None
            taken = kept_from if taken is None else taken  # where the guest has read the rest is not known
            if taken is None:
                return
            late, forgotten = sent.beyond(taken)
            if forgotten:
                self._console.note(f"{forgotten} bytes that were sent while the guest migrated are lost")
            if late:
                self._sent.append(late)
                with contextlib.suppress(StreamEnded):  # it has migrated again: the next connection gets them
                    await self._connection.send(late)

    def _fail(self, error: PropolisError) -> None:
        self._failure = self._failure or error
        for future in list(self._watchers):
            if not future.done():
                future.set_exception(error)
                future.exception()  # it may be awaited no more
