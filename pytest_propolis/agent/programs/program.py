"""One program that an agent runs for a client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from ...agent_api.programs import ProgramFile, StartProgram
from ...errors import HostError
from ...ledger.cleanup import end
from ...ledger.entry import TAG_VARIABLE
from ...ledger.identity import find_tagged
from ...ledger.writer import LedgerWriter
from ...operating_system.child import Child, spawn
from ...operating_system.pipes import read_pipe
from ...operating_system.python_processes import write_python_script

__all__ = ["Program"]

TERMINATION_TIMEOUT_S: Final = 5.0
DRAIN_TIMEOUT_S: Final = 1.0
"""How long output is waited for when everything that could write it is known to have ended."""

PIECE_BYTES: Final = 1 << 16
SCRIPT: Final = """\
import sys
sys.path[:0] = {path!r}
from pytest_propolis.cli import main
main()
"""

Send = Callable[[bytes], Awaitable[None]]


class Program:
    """A program, from its start until it and everything that it has started have ended.

    :param directory: the agent's.
    :param writer: records what it takes in the ledger.
    :param send: receives its output; an `OSError` of it means that the client has gone.
    """

    def __init__(self, request: StartProgram, *, directory: Path, writer: LedgerWriter, send: Send) -> None:
        self._request = request
        self._directory = directory
        self._writer = writer
        self._send = send
        self._ending = asyncio.Event()
        self._has_ended = False
        self._is_sending = False

    def end(self) -> None:
        """Have it ended: `run` returns soon after."""
        self._ending.set()

    async def run(self) -> int:
        """Run the program to its end; return its status as a shell reports it.

        :raises HostError: when it cannot be started.
        """
        with self._working_directory() as directory:
            await asyncio.to_thread(_copy_files, self._request.files, directory)
            async with read_pipe() as (output, output_fd):
                try:
                    status, copying = await self._run(directory, output, output_fd)
                finally:
                    self._has_ended = True
                await copying
        return status if status >= 0 else 128 - status

    async def _run(
        self, directory: Path, output: asyncio.StreamReader, output_fd: int
    ) -> tuple[int, asyncio.Task[None]]:
        async with self._started(directory, output_fd) as child:
            copying = asyncio.create_task(self._copy(output))
            ended = asyncio.create_task(child.wait())
            ending = asyncio.create_task(self._ending.wait())
            try:
                await asyncio.wait([ended, ending], return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    child.signal(signal.SIGTERM)
                    await asyncio.wait([ended], timeout=TERMINATION_TIMEOUT_S)
            finally:
                ending.cancel()
        return await ended, copying

    @contextlib.asynccontextmanager
    async def _started(self, directory: Path, output_fd: int) -> AsyncIterator[Child]:
        """Start it; kill what is left of it at the end.

        :param output_fd: closed here.
        """
        record = self._writer.intend(self._request.name and f"program {self._request.name!r}")
        tag = record.environment[TAG_VARIABLE]
        try:
            child = await spawn(
                Path("/bin/sh"),
                ["-c", self._request.command],
                stdout=output_fd,
                stderr=output_fd,
                environment={**self._environment(), **record.environment},
                directory=directory,
            )
        except OSError as error:
            record.gone()
            raise HostError(f"a program cannot be run in {directory}: {error.strerror}") from None
        finally:
            os.close(output_fd)
        record.live(child.pid)
        try:
            yield child
        finally:
            await asyncio.shield(_end_all(child, tag))
            record.gone()

    def _environment(self) -> dict[str, str]:
        wanted = self._request.environment
        path = wanted.get("PATH") or os.environ.get("PATH") or os.defpath
        return {**wanted, "PATH": f"{_commands(self._directory)}{os.pathsep}{path}"}

    @contextlib.contextmanager
    def _working_directory(self) -> Iterator[Path]:
        """Yield the requested working directory, or a temporary one that is removed after the block."""
        if self._request.directory:
            yield Path(self._request.directory)
            return
        own = self._directory / f"program-{secrets.token_hex(4)}"
        with self._writer.creating("directory", own) as entry:
            own.mkdir(mode=0o700)
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
            self._writer.gone(entry)

    async def _copy(self, output: asyncio.StreamReader) -> None:
        """Send the output to its end; when the client has gone, only read it."""
        has_client = True
        while data := await self._read(output):
            with contextlib.suppress(OSError):
                if has_client:
                    has_client = False
                    await self._send(data)
                    has_client = True

    async def _read(self, output: asyncio.StreamReader) -> bytes:
        """Return some output; nothing at the end of it, and when it has no end although the program has ended."""
        reading = asyncio.ensure_future(output.read(PIECE_BYTES))
        while not (await asyncio.wait([reading], timeout=DRAIN_TIMEOUT_S))[0]:
            if self._has_ended:
                reading.cancel()
                return b""
        return reading.result()


async def _end_all(child: Child, tag: str) -> None:
    """Kill what is left of a program, and what it has started, also outside its process group."""
    await child.end()
    await asyncio.to_thread(end, lambda: find_tagged(tag))


def _copy_files(files: Iterable[ProgramFile], directory: Path) -> None:
    """
    :raises HostError: naming the file.
    """
    for file in files:
        target = directory / file.name
        try:
            if not target.resolve().is_relative_to(directory.resolve()):
                raise HostError(f"{file.name} is not in the directory of its program")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, target)
            target.chmod(file.mode)
        except OSError as error:
            raise HostError(f"{file.path} cannot be copied to {target}: {error.strerror}") from None


def _commands(directory: Path) -> Path:
    """Return the directory with the command ``propolis``: where a run brought this project, it is not installed."""
    place = directory / "bin"
    if not (place / "propolis").exists():
        place.mkdir(mode=0o700, exist_ok=True)
        script = place / f".{secrets.token_hex(4)}"
        write_python_script(script, SCRIPT.format(path=[entry for entry in sys.path if entry]))
        script.replace(place / "propolis")
    return place
