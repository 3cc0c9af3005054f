"""A shell on a local pseudo-terminal behind a real websocket: what a guest's serial console is, without the guest."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import shutil
import signal
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

from pytest_propolis.console.console import Console

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
PROMPT = "prompt> "


def shell_command(shell: str) -> str:
    """Return the command by which the read-eval loop calls the shell."""
    return "busybox sh" if shell == "busybox" else shell


@contextlib.asynccontextmanager
async def terminal(*command: str, environment: dict[str, str]) -> AsyncIterator[int]:
    """Start an interactive shell as the leader of a session on a new terminal; yield the host end."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        cwd="/",
    )
    os.close(theirs)
    try:
        yield ours
    finally:
        # The end of the terminal is a hang-up for all that run on it.
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def served(host_end: int, socket: Path) -> AsyncIterator[None]:
    """Serve a terminal over a websocket, as a Propolis server does a serial port."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    incoming, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(host_end), "rb", buffering=0)
    )
    outgoing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(os.dup(host_end), "wb", buffering=0))

    async def show(client: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            while data := await reader.read(1 << 14):
                await client.send(data)
        await client.close(1001, "VM stopped")

    async def serve(client: ServerConnection) -> None:
        showing = asyncio.create_task(show(client))
        with contextlib.suppress(ConnectionClosed):
            async for message in client:
                outgoing.write(message.encode() if isinstance(message, str) else message)
        showing.cancel()

    async with unix_serve(serve, str(socket), compression=None):
        try:
            yield
        finally:
            incoming.close()
            outgoing.abort()


@contextlib.asynccontextmanager
async def console_on(shell: str, directory: Path) -> AsyncIterator[Console]:
    """Open the console of a local shell that shows its prompt."""
    options = ["--norc", "--noprofile"] if shell == "bash" else []
    command = [*shell_command(shell).split(), *options, "-i"]
    environment = {"PATH": os.environ["PATH"], "PS1": PROMPT, "TERM": "dumb", "HOME": "/"}
    async with console_on_program(*command, directory=directory, environment=environment) as console:
        await console.wait_for(PROMPT, timeout_s=10)
        yield console


@contextlib.asynccontextmanager
async def console_on_program(*command: str, directory: Path, environment: dict[str, str]) -> AsyncIterator[Console]:
    """Open the console of a program on a local terminal."""
    socket = directory / "console.sock"
    async with (
        terminal(*command, environment=environment) as host_end,
        served(host_end, socket),
        unix_connect(str(socket), compression=None, max_size=None, proxy=None) as connection,
        Console.over(connection, vm="local", log_path=directory / "serial.log") as console,
    ):
        yield console


def chunked(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Split bytes at these positions."""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        yield data[start:end]
