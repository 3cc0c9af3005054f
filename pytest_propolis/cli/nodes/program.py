"""A program that a command runs, whose last lines of output are kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from ...errors import PropolisError, SettingsError

__all__ = ["Ended", "run_program"]

KEPT_BYTES: Final = 8192
KEPT_LINES: Final = 30
TERMINATION_TIMEOUT_S: Final = 5.0
DRAIN_TIMEOUT_S: Final = 1.0
"""How long output is waited for when the program has ended, but a child of it holds the pipe."""

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    :param status: as a shell has it: 128 and the signal's number for one that a signal ended.
    :param output: its last lines.
    """

    status: int
    output: tuple[str, ...]


async def run_program(
    command: Sequence[str], environment: Mapping[str, str], *, until: Awaitable[PropolisError] | None = None
) -> Ended:
    """Run a program until it exits. Pass its output through, and forward signals of this process to it.

    :param until: ends the program with SIGTERM, and then SIGKILL, when this is done; its result is raised then.
    :raises SettingsError: when there is no such program.
    """
    tail: deque[bytes] = deque()
    async with _pipe() as (output, output_fd), _pipe() as (errors, errors_fd):
        async with _started(command, environment, stdout=output_fd, stderr=errors_fd) as process:
            copies = [
                asyncio.create_task(_copy(output, sys.stdout.buffer, tail)),
                asyncio.create_task(_copy(errors, sys.stderr.buffer, tail)),
            ]
            ended = asyncio.create_task(process.wait())
            cause = asyncio.ensure_future(until) if until is not None else None
            await asyncio.wait([ended, *([cause] if cause else [])], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await _terminate(process)
                await ended
        _, late = await asyncio.wait(copies, timeout=DRAIN_TIMEOUT_S)
        for task in (*late, *([cause] if cause and not cause.done() else [])):
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    if cause and cause.done() and not cause.cancelled() and process.returncode != 0:
        raise cause.result()
    status = process.returncode or 0
    lines = b"".join(tail).decode(errors="replace").splitlines()
    return Ended(status if status >= 0 else 128 - status, tuple(lines[-KEPT_LINES:]))


@contextlib.asynccontextmanager
async def _started(
    command: Sequence[str], environment: Mapping[str, str], *, stdout: int, stderr: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a program in a process group of its own; kill the group if the block does not see its end.

    :param stdout: a descriptor, which is closed here, as is `stderr`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=stdout, stderr=stderr, env={**os.environ, **environment}, process_group=0
        )
    except OSError as error:
        raise SettingsError(f"{command[0]!r} cannot be run: {error.strerror}") from None
    finally:
        os.close(stdout)
        os.close(stderr)
    loop = asyncio.get_running_loop()
    for number in FORWARDED:
        loop.add_signal_handler(number, _send, process, number)
    try:
        with _in_foreground(process.pid):
            yield process
    finally:
        if process.returncode is None:
            _send(process, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Open a pipe; return a reader and the write end. asyncio's own would delay `wait` until all heirs close them."""
    reader = asyncio.StreamReader()
    read_fd, write_fd = os.pipe()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
    )
    try:
        yield reader, write_fd
    finally:
        transport.close()


@contextlib.contextmanager
def _in_foreground(group: int) -> Iterator[None]:
    """Give the terminal to a process group, if this process has it: else the group could not read from it."""
    terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    if terminal is None or os.tcgetpgrp(terminal) != os.getpgrp():
        yield
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else this process stops when it takes the terminal back
    try:
        with contextlib.suppress(OSError):  # the program has ended
            os.tcsetpgrp(terminal, group)
            os.killpg(group, signal.SIGCONT)  # it may have read before
        yield
    finally:
        with contextlib.suppress(OSError):  # the terminal has gone
            os.tcsetpgrp(terminal, os.getpgrp())
        signal.signal(signal.SIGTTOU, before)


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal the program and its descendants."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _terminate(process: asyncio.subprocess.Process) -> None:
    _send(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(TERMINATION_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        _send(process, signal.SIGKILL)


async def _copy(source: asyncio.StreamReader, target: IO[bytes], tail: deque[bytes]) -> None:
    while data := await source.read(KEPT_BYTES):
        tail.append(data)
        while sum(map(len, tail)) > 2 * KEPT_BYTES:
            tail.popleft()
        with contextlib.suppress(OSError, ValueError):  # what reads it has gone
            target.write(data)
            target.flush()
