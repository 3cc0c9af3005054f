"""Copy files to and from a host, each over its own channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from ...errors import HostError, ResourceExhausted
from ...operating_system.read_ahead import read_ahead
from ...storage import file_stream
from ...storage.file_stream import (
    BY_CONTENT,
    COMPRESSED,
    HEADER,
    LINE_PREFIX,
    PartialFile,
    digest,
    frames,
    source_key,
    unpacked,
)
from .bootstrap import start_program
from .transport.transport import Channel, Transport

__all__ = ["get_file", "put_file"]

PROGRAM: Final = Path(file_stream.__file__)


async def put_file(
    transport: Transport, host: str, local: Path, remote: str, *, python: str, once: bool = False
) -> None:
    """Copy a file of this machine to the host, as a whole: at its place is the old one or the new one.

    Holes and zeros are not sent. What a broken transfer has brought is not sent again.

    :param once: the path on the host tells the content: nothing is sent if there is such a file.
    :raises HostError: naming the host and the file.
    """
    with _opened(local) as descriptor:
        found = os.fstat(descriptor)
        order = {"do": "receive", "path": remote, "size": found.st_size, "mode": stat.S_IMODE(found.st_mode)}
        order |= {"once": once, "key": BY_CONTENT if once else source_key(descriptor)}
        async with _program(transport, host, order, python) as program:
            answer = await program.receive()
            if answer.get("is_there"):
                return
            done = answer["done"]
            summing = asyncio.create_task(asyncio.to_thread(digest, descriptor, found.st_size))
            with contextlib.suppress(*transport.errors):  # the answer has the reason
                await program.send_frames(frames(descriptor, found.st_size, done))
                program.write({"sha256": await summing})
            if not (await program.receive())["good"]:
                raise HostError(f"host {host}: {remote} did not arrive as {local} was sent", hint="try again")


async def get_file(transport: Transport, host: str, remote: str, local: Path, *, python: str) -> None:
    """Copy a file of the host to this machine; otherwise as `put_file`.

    :raises HostError: naming the host and the file.
    """
    async with _program(transport, host, {"do": "send", "path": remote}, python) as program:
        facts = await program.receive()
        part = await asyncio.to_thread(PartialFile, str(local), facts["size"], facts["mode"], facts["key"])
        try:
            program.write({"done": part.done})
            await program.receive_frames(part)
            if not await asyncio.to_thread(part.finish, (await program.receive())["sha256"]):
                raise HostError(f"host {host}: {remote} did not arrive as it was sent", hint="try again")
        finally:
            part.close()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _program(transport: Transport, host: str, order: dict[str, Any], python: str) -> AsyncIterator[_Program]:
    channel = await start_program(transport, PROGRAM.read_text(), python=python)
    program = _Program(channel, host)
    program.write(order)
    try:
        yield program
    finally:
        channel.stdin.close()
        channel.kill()


class _Program:
    """The program on the host at the other side of a transfer."""

    def __init__(self, channel: Channel, host: str) -> None:
        self._channel = channel
        self._host = host

    def write(self, message: dict[str, Any]) -> None:
        self._channel.stdin.write(msgspec.json.encode(message) + b"\n")

    async def receive(self) -> dict[str, Any]:
        """Return the next message.

        :raises HostError: when the program reports an error, or ends.
        """
        while line := await self._channel.stdout.readline():
            if line.startswith(LINE_PREFIX.encode()):
                message: dict[str, Any] = msgspec.json.decode(line.removeprefix(LINE_PREFIX.encode()))
                if "error" in message:
                    kind = ResourceExhausted if message.get("full") else HostError
                    raise kind(f"host {self._host}: {message['error']}")
                return message
        raise HostError(f"host {self._host}: a transfer was broken off", hint="what has arrived is not sent again")

    async def send_frames(self, stream: Generator[bytes, None, None]) -> None:
        """Send frames; the next one is read while one is on its way."""
        async with read_ahead(stream) as upcoming:
            async for frame in upcoming:
                self._channel.stdin.write(frame)
                await self._channel.stdin.drain()

    async def receive_frames(self, part: PartialFile) -> None:
        """Write received frames to a file, and record the progress if the transfer is interrupted."""
        stream = self._channel.stdout
        try:
            while True:
                offset, length = HEADER.unpack(await stream.readexactly(HEADER.size))
                if length == 0:
                    return
                payload = await stream.readexactly(length & ~COMPRESSED)
                await asyncio.to_thread(part.write, offset, unpacked(length, payload))
        except asyncio.IncompleteReadError:
            raise HostError(f"host {self._host}: a transfer was broken off") from None
        finally:
            await asyncio.to_thread(part.save)
