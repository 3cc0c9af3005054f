"""Frames of a command's input and output on one stream: both ends of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..ssh.transport.transport import Channel
from .messages import OpenOutcome
from .streams import Ends, send

__all__ = ["channel_on", "serve_command"]

HEADER: Final = struct.Struct(">BI")
STATUS: Final = struct.Struct(">i")
STDIN, STDIN_END, KILL = 0, 1, 2
STDOUT, STDERR, ENDED = 0, 1, 2
CHUNK_BYTES: Final = 1 << 18
READER_BYTES: Final = 1 << 20
LEAVE_TIMEOUT_S: Final = 20.0
"""A watchdog whose connection has ended takes this long at most to end its agent."""

_OF_SSH: Final = ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")


async def serve_command(command: str, ends: Ends) -> None:
    """Run a shell command for the run, to its end.

    If the stream ends before, so does the command's standard input; a command that ignores this is killed.
    """
    reader, writer = ends
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=_environment(os.environ),
        cwd=_home(),
        start_new_session=True,  # Ctrl-C on the terminal must not reach it
    )
    assert process.stdout
    assert process.stderr
    send(writer, OpenOutcome())
    outputs = asyncio.gather(_send(process.stdout, STDOUT, writer), _send(process.stderr, STDERR, writer))
    orders = asyncio.create_task(_obey(reader, process))
    ending = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([ending, orders], return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            await outputs
            writer.write(HEADER.pack(ENDED, STATUS.size) + STATUS.pack(ending.result()))
            await writer.drain()
    finally:
        orders.cancel()
        try:
            await asyncio.shield(_leave(process, ending))
        finally:
            outputs.cancel()
            await asyncio.gather(orders, outputs, return_exceptions=True)


def _home() -> Path:
    """Return the directory that commands begin in: a user may have none."""
    home = Path(os.environ.get("HOME", "/"))
    return home if home.is_dir() else Path("/")


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of commands: ``python3`` is the Python that runs this; no sshd has an address for it."""
    own = str(Path(sys.executable).parent)
    kept = {name: value for name, value in variables.items() if name not in _OF_SSH}
    return kept | {"PATH": f"{own}:{variables.get('PATH', os.defpath)}"}


async def _send(stream: asyncio.StreamReader, kind: int, writer: asyncio.StreamWriter) -> None:
    while data := await stream.read(CHUNK_BYTES):
        with contextlib.suppress(OSError):  # a command that is to end may write on
            writer.write(HEADER.pack(kind, len(data)) + data)
            await writer.drain()


async def _obey(reader: asyncio.StreamReader, process: Process) -> None:
    assert process.stdin
    with contextlib.suppress(EOFError, OSError):
        while True:
            kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
            data = await reader.readexactly(length)
            if kind == KILL:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            elif kind == STDIN_END:
                process.stdin.close()
            else:
                with contextlib.suppress(OSError):  # it reads no more
                    process.stdin.write(data)
                    await process.stdin.drain()


async def _leave(process: Process, ending: asyncio.Future[int]) -> None:
    assert process.stdin
    process.stdin.close()
    await asyncio.wait([ending], timeout=LEAVE_TIMEOUT_S)
    if not ending.done():
        process.kill()
        await ending


def channel_on(ends: Ends) -> Channel:
    """Return the run's side of a command's stream, once it has begun."""
    remote = _RemoteCommand(ends)
    return Channel(_Stdin(ends[1]), remote.stdout, remote.stderr, remote.status, remote.kill)


class _Stdin:
    """The standard input of a command."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._is_closed = False

    def write(self, data: bytes) -> None:
        self._writer.write(HEADER.pack(STDIN, len(data)) + data)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        if not self._is_closed and not self._writer.is_closing():
            self._is_closed = True
            self._writer.write(HEADER.pack(STDIN_END, 0))


class _Flow:
    """What a `StreamReader` that is fed by hand pauses while it is full."""

    def __init__(self) -> None:
        self._goes = asyncio.Event()
        self._goes.set()

    def pause_reading(self) -> None:
        self._goes.clear()

    def resume_reading(self) -> None:
        self._goes.set()

    async def wait(self) -> None:
        await self._goes.wait()


class _RemoteCommand:
    """The output and the status of a command."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.stdout, self._stdout_flow = _reader()
        self.stderr, self._stderr_flow = _reader()
        self._work = asyncio.create_task(self._read())

    async def status(self) -> int:
        return await asyncio.shield(self._status)

    def kill(self) -> None:
        _, writer = self._ends
        if not writer.is_closing():
            writer.write(HEADER.pack(KILL, 0))
            writer.close()

    async def _read(self) -> None:
        reader, writer = self._ends
        try:
            while True:
                kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
                data = await reader.readexactly(length)
                if kind == ENDED:
                    break
                stream, flow = (self.stdout, self._stdout_flow) if kind == STDOUT else (self.stderr, self._stderr_flow)
                stream.feed_data(data)
                await flow.wait()
            self._status.set_result(STATUS.unpack(data)[0])
            for stream in (self.stdout, self.stderr):
                stream.feed_eof()
        except (EOFError, OSError):
            for stream in (self.stdout, self.stderr):
                stream.set_exception(ConnectionResetError("the connection of a command ended"))
            self._status.set_exception(ConnectionResetError("the connection of a command ended"))
            self._status.exception()  # retrieved: it may not be awaited
        finally:
            writer.close()


def _reader() -> tuple[asyncio.StreamReader, _Flow]:
    reader, flow = asyncio.StreamReader(limit=READER_BYTES), _Flow()
    reader.set_transport(flow)  # type: ignore[arg-type]  # it needs these two methods only
    return reader, flow
