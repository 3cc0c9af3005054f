"""The guest ports of a VM, as a client uses them: connections, and streams with a mark at each end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Final

from ...agent_api.guest_ports import STREAM_PORTS, PortEnded
from ...errors import AgentError, ApiError, CapabilityMissing
from ...propolis_api.connection.byte_stream import ByteStream, StreamRefused, open_byte_stream
from ...propolis_api.connection.endpoint import Endpoint

__all__ = ["GuestPorts", "MarkedStream", "PortStream", "open_ports", "port_name"]

FRAME_BYTES: Final = 1 << 18
MOVE_TIMEOUT_S: Final = 60.0
NO_INSTANCE: Final = 424
"""The HTTP status where a server's VM has ended."""

# A guest without udev has no names for ports below /dev/virtio-ports. The kernel names a device after the number of
# its port: to read all names takes an emulated guest as long as a small file. The last user closes a port in a moment.
# `command` keeps a failure of `exec` from ending the shell: one that was forked would go on with the loop of the other.
# It is short and has no line break, because it is typed at a serial line, too.
_OPEN: Final = (
    "[ -d /sys/class/virtio-ports ]||modprobe -q virtio_console 2>/dev/null;_p= _i=0;"
    ' for _d in /sys/class/virtio-ports/vport*pNUMBER;do IFS= read -r _n<"$_d/name"'
    '&&[ "$_n" = org.propolis.NUMBER ]&&_p="/dev/${_d##*/}";done 2>/dev/null;'
    ' [ -c "$_p" ]||{ echo "the guest has no port org.propolis.NUMBER: its kernel needs virtio_console";exit 1;};'
    ' until command exec DESCRIPTOR<>"$_p";do _i=$((_i+1));[ "$_i" -lt 100 ]&&sleep 0.05||'
    '{ echo "the port org.propolis.NUMBER is held by a program in the guest";exit 1;};done 2>/dev/null'
)


def port_name(number: int) -> str:
    """Return the name of a port in the guest."""
    return f"org.propolis.{number}"


def open_ports(descriptors: Mapping[int, int]) -> str:
    """Return one line of a script that opens ports, or ends the script.

    :param descriptors: the descriptor of each, by the number of the port.
    """
    commands = [
        _OPEN.replace("NUMBER", str(number)).replace("DESCRIPTOR", str(descriptor))
        for number, descriptor in descriptors.items()
    ]
    return "; ".join(["set +efu", *commands])


class GuestPorts:
    """The ports of one VM. Each has one user at a time, and any number wait for a free one.

    :param vm: the VM's name, for errors.
    """

    def __init__(self, endpoint: Endpoint, *, vm: str) -> None:
        self._endpoint = endpoint
        self._vm = vm
        self._free = list(STREAM_PORTS)
        self._released = asyncio.Condition()
        self._moved = asyncio.Event()
        self.moves = 0
        """How often the guest has migrated."""

    def move_to(self, endpoint: Endpoint, *, vm: str) -> None:
        """Find the ports at another server from now on: the guest has migrated there."""
        self._endpoint, self._vm = endpoint, vm
        self.moves += 1
        self._moved.set()
        self._moved = asyncio.Event()

    async def moved_since(self, moves: int) -> None:
        """Wait until the guest has migrated more often than that."""
        while self.moves == moves:
            await self._moved.wait()

    def open_script(self, descriptors: Mapping[int, int]) -> str:
        """Return one line of a script that opens ports in the guest, or ends the script."""
        return open_ports(descriptors)

    @contextlib.asynccontextmanager
    async def taken(self, count: int = 1) -> AsyncIterator[tuple[PortStream, ...]]:
        """Connections to ports that nothing else uses meanwhile.

        :raises CapabilityMissing: when the VM has no guest ports.
        :raises AgentError: when its server does not answer.
        """
        async with self._released:
            await self._released.wait_for(lambda: len(self._free) >= count)
            numbers = [self._free.pop(0) for _ in range(count)]
        try:
            async with contextlib.AsyncExitStack() as opened:
                yield tuple([await opened.enter_async_context(self._connected(number)) for number in numbers])
        finally:
            self._free += numbers
            async with self._released:
                self._released.notify_all()

    @contextlib.asynccontextmanager
    async def _connected(self, number: int) -> AsyncIterator[PortStream]:
        moved = self._moved  # that of the server which is connected to: the guest may move meanwhile
        connection = await self.connect(number)
        try:
            yield PortStream(number, connection, moved=moved)
        finally:
            connection.abort()  # what waits to be sent has no reader any more

    async def connect(self, number: int) -> ByteStream:
        """Open a port where the guest is now.

        :raises ApiError: when the VM has ended.
        :raises CapabilityMissing: when it has no guest ports.
        :raises AgentError: when its server does not answer.
        """
        try:
            return await open_byte_stream(self._endpoint, f"/ports/{number}")
        except StreamRefused as error:
            if error.status == NO_INSTANCE:
                raise ApiError("it has ended, and its guest ports with it", vm=self._vm, status=error.status) from error
            raise CapabilityMissing(
                f"its server has no guest port (HTTP {error.status})",
                vm=self._vm,
                hint='make it with VmConfig(channel="port")',
            ) from error
        except OSError as error:
            silent = AgentError(f"its guest ports do not answer: {error!r}", vm=self._vm)
            raise await self._endpoint.lost_or(silent) from error


class PortStream:
    """A connection to one port."""

    def __init__(self, number: int, connection: ByteStream, *, moved: asyncio.Event) -> None:
        self.number = number
        self._connection = connection
        self._moved = moved
        self._sent = 0

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the guest; wait while it reads nothing.

        :raises StreamEnded: when the machine has ended, or the guest has migrated.
        """
        view = memoryview(data)
        for start in range(0, len(view), FRAME_BYTES):
            frame = view[start : start + FRAME_BYTES]
            await self._connection.send(frame)
            self._sent += len(frame)

    async def receive(self) -> bytes:
        """Return what has come; wait if nothing has.

        :raises StreamEnded: when the machine has ended, or the guest has migrated.
        """
        return await self._connection.receive()

    async def has_lost(self) -> bool:
        """Wait for the end of the connection; return whether the guest has not got all that was sent."""
        await asyncio.wait([self._connection.ended])
        end = PortEnded.told_by(self._connection.text)
        return end is None or end.taken < self._sent

    async def until_moved(self) -> None:
        """After the end of the connection, wait until the port can be connected to again.

        Where the machine has ended it, that is at another server, and takes a minute at most.
        """
        if PortEnded.told_by(self._connection.text) is None:
            return  # only the connection was cut
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOVE_TIMEOUT_S):
                await self._moved.wait()


class MarkedStream:
    """What a guest's program writes to a port, between two marks::

        RS NONCE STX HEAD LF  the stream, to the byte  RS NONCE ETX TAIL EOT

    What comes before belongs to earlier users of the port. No output imitates the marks by accident: NONCE is new.

    """

    def __init__(self, port: PortStream) -> None:
        self.nonce = secrets.token_hex(8)
        self.tail: str | None = None
        """What the last mark says, when the stream was read to its end."""
        self._port = port
        self._rest = b""

    @property
    def begin(self) -> str:
        """The first mark without its head, for `printf`."""
        return rf"\036{self.nonce}\002"

    @property
    def end(self) -> str:
        """The last mark without its tail, for `printf`."""
        return rf"\036{self.nonce}\003"

    async def head(self) -> str:
        """Wait for the first mark, and return its head."""
        mark = b"\x1e%b\x02" % self.nonce.encode()
        while await self._until(mark) is not None:
            pass
        return await self._text(b"\n")

    async def piece(self) -> bytes | None:
        """Return the next piece of the stream; None at its end."""
        piece = await self._until(b"\x1e%b\x03" % self.nonce.encode())
        if piece is None:
            self.tail = await self._text(b"\x04")
        return piece

    async def _until(self, mark: bytes) -> bytes | None:
        """Return what comes before a mark, or a part of it; None when the mark comes next, which is taken then."""
        while True:
            found = self._rest.find(mark)
            if found == 0:
                self._rest = self._rest[len(mark) :]
                return None
            sure = found
            if found < 0:  # it may have come in part
                start = self._rest.rfind(b"\x1e", -len(mark) + 1)
                sure = len(self._rest) if start < 0 else start
            if sure:
                piece, self._rest = self._rest[:sure], self._rest[sure:]
                return piece
            self._rest += await self._port.receive()

    async def _text(self, end: bytes) -> str:
        while end not in self._rest:
            self._rest += await self._port.receive()
        text, _, self._rest = self._rest.partition(end)
        return text.decode(errors="replace")
