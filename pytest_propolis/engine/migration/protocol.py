"""The protocol between the two servers of a migration, over the websocket that the target opens.

The target proposes the protocols that it supports, as text; the source answers with the selected one. From there on
each message is one binary frame:

====================  =====================  ==============================================================
source                target                 phase
====================  =====================  ==============================================================
`Preamble`                                   Sync: what the VM is
                      `Plan`                 Sync: what it became here; the target waits for the stream
`DisksReady`                                 only if disks are copied: they are, and follow what the guest writes
                      `Proceed`              only then
`StreamSent`                                 all of QEMU's state is in the stream
                      `StreamLoaded`         the target has loaded it
`ServerState`                                Server: what is not QEMU's
                      `Ready`                Finish: the target could let the guest run
`HandedOver`                                 Finish: the guest is the target's
====================  =====================  ==============================================================

Between hosts that share no files, QEMU's state, the disks that are copied, and memory that the servers copy go
through further websockets, which the target opens after its `Plan` (`between_hosts`).

Either side may send `Failure` instead, up to `HandedOver`, or close the connection. The source then resumes its guest.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ...agent_api.boot_source import BootSource
from ...agent_api.migration_report import DiskTransfer, MemoryTransfer
from ...propolis_api import InstanceSpec
from ..qemu.devices.host_file import HostFile
from ..qemu.serial_port import SerialState
from .disks import DiskFacts
from .failure import MigrationFailed

__all__ = [
    "ANSWER_TIMEOUT_S",
    "Connection",
    "ConnectionLost",
    "DisksReady",
    "Failure",
    "HandedOver",
    "MigrationChannel",
    "Plan",
    "Preamble",
    "Proceed",
    "Ready",
    "ServerState",
    "StreamLoaded",
    "StreamSent",
    "short_reason",
    "transfer_timeout_s",
]

PROTOCOLS: Final = ("pytest-propolis-migrate/4",)
"""The supported protocols, the best first."""

ANSWER_TIMEOUT_S: Final = 15.0
TRANSFER_S_PER_GIB: Final = 90.0

T = TypeVar("T")


def transfer_timeout_s(memory_mib: int) -> float:
    """Return the time limit for transferring a guest's memory: 90 s per GiB, and at least that of answers."""
    return max(TRANSFER_S_PER_GIB * memory_mib / 1024, ANSWER_TIMEOUT_S)


class Preamble(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The VM at the source.

    :param host: the source's host (`this_host`).
    :param memory: where its memory is, if another QEMU may map it.
    :param reads_memory: whether the source's server can read other memory, in its QEMU's process.
    :param disks: where its disks are, by backend; without those whose backend is a network service.
    """

    host: str
    spec: InstanceSpec
    boot: BootSource
    qemu_version: tuple[int, int, int]
    accelerator: str
    memory: HostFile | None
    disks: dict[str, DiskFacts]
    reads_memory: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The VM at the target.

    :param is_remote: whether the target can reach only the server on the source's host. It opens a websocket for
        QEMU's state and for each disk that is copied then, and `stream` and `disk_socket` are of no use to the source.
    :param boot_contents: hashes of the files that it boots from, by what they are, if it cannot compare them itself.
    :param stream: the UNIX socket where the target waits for QEMU's state.
    :param address: the target's server, for clients that follow the VM.
    :param disks: how each disk is transferred, by backend.
    :param disk_socket: the UNIX socket where the target's QEMU takes those that are copied, as NBD exports that are
        named as their backends.
    """

    memory_transfer: MemoryTransfer
    stream: str
    address: str
    disks: dict[str, DiskTransfer]
    disk_socket: str
    is_remote: bool = False
    boot_contents: dict[str, str] = {}


class DisksReady(msgspec.Struct, frozen=True, tag=True):
    """The target's copies equal the source's disks, and follow what the guest writes."""


class Proceed(msgspec.Struct, frozen=True, tag=True):
    """The target is ready to receive the stream."""


class StreamSent(msgspec.Struct, frozen=True, tag=True):
    """The source's QEMU has sent its whole state."""


class StreamLoaded(msgspec.Struct, frozen=True, tag=True):
    """The target's QEMU has loaded the whole state, and is stopped."""


class ServerState(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The state of the VM in the source's server."""

    com1: SerialState
    com2: SerialState


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The target is ready to run the guest, and waits for permission."""


class HandedOver(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The target owns the guest.

    :param stopped_for_s: how long it has been paused.
    """

    stopped_for_s: float


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The migration is over: it has failed."""

    reason: str


Step = DisksReady | Proceed | StreamSent | StreamLoaded | Ready | HandedOver
Message = Preamble | Plan | Step | ServerState | Failure

REASON_BYTES: Final = 120  # a close frame has room for 123
_DECODER: Final = msgspec.msgpack.Decoder(Message)


class ConnectionLost(Exception):
    """Raised when the other side has disconnected."""


def short_reason(reason: str) -> str:
    """Return as much of a reason as a close frame has room for."""
    return reason.encode()[:REASON_BYTES].decode(errors="ignore")


class Connection(Protocol):
    """A websocket, regardless of which side opened it."""

    async def send(self, frame: str | bytes) -> None:
        """:raises ConnectionLost: when the other side has left."""

    async def receive(self) -> str | bytes:
        """:raises ConnectionLost: when the other side has left."""

    async def close(self, reason: str) -> None:
        """Close it. Idempotent."""

    def abandon(self) -> None:
        """Leave closing it to the side that opened it."""


class MigrationChannel:
    """One side's end of the conversation.

    Every method raises `MigrationFailed`: when the other side reports a failure, disconnects, takes too long, or
    violates the protocol.

    :param other: the role of the other side, for errors: ``source`` or ``target``.
    """

    def __init__(self, connection: Connection, *, other: str) -> None:
        self._connection = connection
        self._other = other

    async def propose(self) -> None:
        """The target's first step."""
        await self._send(",".join(PROTOCOLS))
        chosen = await self._receive(ANSWER_TIMEOUT_S)
        if chosen not in PROTOCOLS:
            raise MigrationFailed(f"the source chose the protocol {chosen!r}, which was not offered")

    async def select(self) -> None:
        """The source's first step."""
        offers = await self._receive(ANSWER_TIMEOUT_S)
        known = [name for name in PROTOCOLS if isinstance(offers, str) and name in offers.split(",")]
        if not known:
            raise MigrationFailed(f"no protocol in common: {offers!r} is offered, {', '.join(PROTOCOLS)} spoken here")
        await self._send(known[0])

    async def send(self, message: Message) -> None:
        await self._send(msgspec.msgpack.encode(message))

    async def receive(self, kind: type[T], *, timeout_s: float = ANSWER_TIMEOUT_S) -> T:
        """Return the next message, which must be of this kind."""
        frame = await self._receive(timeout_s)
        try:
            message: Any = _DECODER.decode(frame if isinstance(frame, bytes) else frame.encode())
        except msgspec.DecodeError as error:
            raise MigrationFailed(f"the {self._other} sent what is no message: {error}") from None
        if isinstance(message, Failure):
            raise MigrationFailed(message.reason, reported=True)
        if not isinstance(message, kind):
            raise MigrationFailed(f"the {self._other} said {type(message).__name__} where {kind.__name__} was due")
        return message

    async def fail(self, reason: str) -> None:
        """Report the failure to the other side, if it is still connected, and end the conversation."""
        with contextlib.suppress(MigrationFailed):  # it has disconnected, and so has noticed
            await self.send(Failure(reason=reason))
        await self.close(reason)

    async def close(self, reason: str = "") -> None:
        """End the conversation. Idempotent."""
        await self._connection.close(reason)

    def abandon(self) -> None:
        """End the conversation before it began."""
        self._connection.abandon()

    async def _send(self, frame: str | bytes) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._connection.send(frame)
        except (ConnectionLost, TimeoutError) as error:
            raise self._lost(error) from None

    async def _receive(self, timeout_s: float) -> str | bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.receive()
        except ConnectionLost as error:
            raise self._lost(error) from None
        except TimeoutError:
            raise MigrationFailed(f"the {self._other} did not answer for {timeout_s:.0f} s") from None

    def _lost(self, error: Exception) -> MigrationFailed:
        return MigrationFailed(f"the {self._other} has left{f': {error}' if str(error) else ''}")
