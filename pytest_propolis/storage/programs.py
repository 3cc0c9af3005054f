"""Programs: run one to completion, without letting it outlive the calling task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO

import msgspec

from ..operating_system.python_processes import original_popen, untraced
from ..operating_system.registry import system

__all__ = ["Finished", "executable_program", "run_program"]


class Finished(msgspec.Struct, frozen=True):
    """The exit status and output of a program."""

    status: int
    output: str
    stderr: str

    def last_lines(self, count: int = 5) -> str:
        """Return the last lines of standard error, or of standard output if that is empty."""
        text = self.stderr.strip() or self.output.strip()
        return "\n".join(text.splitlines()[-count:]) or f"it printed nothing, and ended with status {self.status}"


async def run_program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    traced: bool = True,
    directory: Path | None = None,
    ends_with_parent: bool = False,
    on_line: Callable[[str], None] | None = None,
) -> Finished:
    """Run a program without input, in a session of its own, with messages in English.

    When the task is cancelled the program is killed and reaped first. A test's doubles of `subprocess` are not used.

    :param environment: variables to add to this process's environment.
    :param traced: let debuggers and coverage of this process follow it.
    :param directory: its working directory; None for this process's own.
    :param ends_with_parent: have it killed also when this process is.
    :param on_line: called with each line of its standard output as it comes, without the line's end.
    :raises OSError: if it cannot be started.
    """
    with system().children.ending_with_parent() if ends_with_parent else nullcontext(()) as prefix:
        process = original_popen()(
            [*prefix, *argv],
            cwd=directory,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env={**(os.environ if traced else untraced(os.environ)), "LC_ALL": "C", **(environment or {})},
            start_new_session=True,  # Ctrl-C reaches it only through our cancellation
        )
    try:
        output, stderr = await _read(process, on_line)
        status = await _ended(process)
    finally:
        await _kill(process)
    return Finished(status, output.decode(errors="replace"), stderr.decode(errors="replace"))


def executable_program(program: Path, directory: Path) -> Path:
    """Return a program that can be run: a copy in a directory, if it is an artifact from a store.

    Nothing is executable in a store.
    """
    if os.access(program, os.X_OK) or not program.is_file():
        return program
    copy = directory / program.name
    shutil.copyfile(program, copy)
    copy.chmod(0o700)
    return copy


async def _read(process: Popen[bytes], on_line: Callable[[str], None] | None) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr, ExitStack() as opened:
        output = await _reader(process.stdout, opened)
        stderr = asyncio.ensure_future((await _reader(process.stderr, opened)).read())
        opened.callback(stderr.cancel)
        read = b""
        if on_line is not None:
            async for line in output:
                on_line(line.decode(errors="replace").rstrip("\n"))
                read += line
        return read + await output.read(), await stderr


async def _reader(pipe: IO[bytes], opened: ExitStack) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    opened.callback(transport.close)
    return reader


async def _ended(process: Popen[bytes]) -> int:
    status = process.poll()
    return await asyncio.to_thread(process.wait) if status is None else status


async def _kill(process: Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children are in its session, and so in its group
        await asyncio.shield(asyncio.to_thread(process.wait))
