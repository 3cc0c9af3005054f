"""Streams of bytes over guest ports, unchanged; the shell reports how the command ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, NoReturn

from ...errors import CommandTimeout
from ...propolis_api.connection.byte_stream import StreamEnded
from ..shell import Shell
from ..shell_protocol import new_nonce
from .channel import Exchanged, Garbled
from .guest_ports import GuestPorts, MarkedStream, PortStream, open_ports

__all__ = ["CHUNK_BYTES", "FEED", "PortChannel", "chunks"]

STALL_S: Final = 60.0
"""How long nothing may move."""
CHUNK_BYTES: Final = 2 << 20
"""How much the guest reads by one process."""

FEED: Final = (
    'while IFS= read -r _l <&8 && [ "$_l" != 0 ]; do dd bs="$_l" count=1 iflag=fullblock status=none <&8 || exit; done'
)
"""Lines of a script that read what `chunks` makes from descriptor 8, and write what is in it."""

# What an earlier transfer has left in the port is no line with the nonce.
_UPLOAD: Final = r"""(OPEN
while IFS= read -r _l <&8 && [ "$_l" != NONCE ]; do :; done
FEED | { COMMAND
} 8>&-)
"""

_DOWNLOAD: Final = r"""(OPEN
printf 'BEGIN\n' >&8
{ COMMAND
} >&8 8>&-
_s=$?
printf 'END%d\004' "$_s" >&8
exit "$_s")
"""


async def chunks(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream as the guest's `FEED` reads it: ``COUNT LF``, so many bytes, and so on, at last ``0 LF``."""
    gathered = bytearray()
    async for data in source:
        gathered += data
        if len(gathered) >= CHUNK_BYTES:
            yield b"%d\n" % len(gathered)
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield b"%d\n" % len(gathered)
        yield bytes(gathered)
    yield b"0\n"


class PortChannel:
    """The `ByteChannel` of a guest with ports. It needs `dd` there, and the driver virtio_console.

    :param vm: the VM's name, for errors.
    """

    block_bytes: int | None = None

    def __init__(self, shell: Shell, ports: GuestPorts, *, vm: str) -> None:
        self._shell = shell
        self._ports = ports
        self._vm = vm

    async def upload(self, command: str, source: AsyncIterator[bytes], *, note: str) -> Exchanged:
        async with self._ports.taken() as (port,), self._moving(note) as moved:
            nonce = new_nonce()

            async def feed() -> None:
                await port.send(b"\n%b\n" % nonce.encode())
                async for piece in chunks(source):
                    await port.send(piece)
                    moved()

            script = _UPLOAD.replace("OPEN", open_ports({port.number: 8})).replace("NONCE", nonce)
            return await self._exchange(port, script.replace("FEED", FEED).replace("COMMAND", command), feed(), note)

    async def download(self, command: str, sink: Callable[[bytes], None], *, note: str) -> Exchanged:
        async with self._ports.taken() as (port,), self._moving(note) as moved:
            stream = MarkedStream(port)

            async def fetch() -> None:
                await stream.head()
                while (piece := await stream.piece()) is not None:
                    moved()
                    sink(piece)

            script = _DOWNLOAD.replace("OPEN", open_ports({port.number: 8})).replace("BEGIN", stream.begin)
            script = script.replace("END", stream.end).replace("COMMAND", command)
            return await self._exchange(port, script, fetch(), note, whole=True)

    async def _exchange(
        self, port: PortStream, script: str, transfer: Coroutine[Any, Any, None], note: str, *, whole: bool = False
    ) -> Exchanged:
        """Run a script, and what happens on the port beside it.

        :param whole: whether a script that succeeds has a transfer that comes to its end.
        :raises Garbled: when the port is lost, because the guest migrates, say.
        """
        output = bytearray()
        command = self._shell.stream(script, new_nonce(), sink=output.extend, note=note)
        async with _both(command, transfer) as (running, moving):
            await asyncio.wait([running, moving], return_when=asyncio.FIRST_COMPLETED)
            if moving.done():
                await self._settle(port, moving, running)
            status = await self._status(port, running)
            if whole and status == 0:
                await self._settle(port, moving, running)
        return Exchanged(status=status, errors=output.decode(errors="replace").strip())

    async def _status(self, port: PortStream, running: asyncio.Task[int]) -> int:
        """Return the status of a script, unless it waits for what was sent and is lost with the port.

        :raises Garbled: when it is.
        """
        losing = asyncio.create_task(port.has_lost())
        try:
            await asyncio.wait([running, losing], return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and losing.result():
                await self._lose(port, running)
        finally:
            losing.cancel()
        return await running

    async def _settle(self, port: PortStream, moving: asyncio.Task[None], running: asyncio.Task[int]) -> None:
        try:
            await moving
        except StreamEnded:
            await self._lose(port, running)

    async def _lose(self, port: PortStream, running: asyncio.Task[int]) -> NoReturn:
        """Wait until the port can be connected to again, or the script or the VM has ended.

        :raises Garbled: when it can.
        """
        waiting = asyncio.create_task(port.until_moved())
        failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._shell.on_failure(failure)
        try:
            await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                running.result()
                await asyncio.wait([waiting, failure], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                failure.result()
        finally:
            waiting.cancel()
            failure.cancel()
        raise Garbled("the guest's port was lost") from None

    @contextlib.asynccontextmanager
    async def _moving(self, note: str) -> AsyncIterator[Callable[[], None]]:
        """Limit how long nothing moves: what is given says that something did."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(STALL_S) as limit:

                def moved() -> None:
                    with contextlib.suppress(RuntimeError):  # it has expired already
                        limit.reschedule(loop.time() + STALL_S)

                yield moved
        except TimeoutError:
            raise CommandTimeout(f"{note}: nothing moves any more", vm=self._vm, waited_s=STALL_S) from None


@contextlib.asynccontextmanager
async def _both(
    command: Coroutine[Any, Any, int], transfer: Coroutine[Any, Any, None]
) -> AsyncIterator[tuple[asyncio.Task[int], asyncio.Task[None]]]:
    tasks = asyncio.create_task(command), asyncio.create_task(transfer)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
