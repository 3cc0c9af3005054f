"""Child processes that cannot outlive their parent, including their descendants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final, Protocol

from .interface import Descendants
from .registry import system

__all__ = ["Child", "ChildRecord", "Journal", "NoJournal", "spawn"]

GROUP_END_S: Final = 0.5
"""How long a killed process group may take to be gone before processes that left the group are looked for."""

ESCAPED_END_S: Final = 5.0


class ChildRecord(Protocol):
    """The record of one child process."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that the child carries, so that it is found even if its pid was never recorded."""

    def live(self, pid: int) -> None:
        """The child runs."""

    def gone(self) -> None:
        """The child was waited for."""


class Journal(Protocol):
    """Records child processes before they are started."""

    def intend(self) -> ChildRecord:
        """Record that a child is about to be started."""


class NoJournal:
    """Records nothing, for children that cannot outlive their parent."""

    environment: Mapping[str, str] = MappingProxyType({})

    def intend(self) -> ChildRecord:
        return self

    def live(self, pid: int) -> None:
        pass

    def gone(self) -> None:
        pass


class Child:
    """A program that leads its own process group, and its descendants.

    A program may be a wrapper script that starts the real one: both are signalled, and both are waited for. Each
    of them inherits the write end of a pipe, so that end of file on the pipe means that the last of them is gone.
    """

    def __init__(self, process: asyncio.subprocess.Process, holders: int, descendants: Descendants) -> None:
        self._process = process
        self._descendants = descendants
        self._holders: int | None = holders
        self._ending: asyncio.Task[bool] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How the program itself ended; None while it runs."""
        return self._process.returncode

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        return self._process.stdout

    @property
    def stderr(self) -> asyncio.StreamReader | None:
        return self._process.stderr

    async def wait(self) -> int:
        """Wait until the program itself has ended; its descendants may still run."""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signal the program and its descendants. No effect if all are gone."""
        # While a process of the group runs, or its leader was not waited for, its number cannot be another group's.
        if self.returncode is None or not self._are_all_gone():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                system().children.signal_group(self.pid, number)

    async def end(self) -> bool:
        """Kill the program and its descendants, and wait until they are gone, even if the caller is cancelled.

        :returns: whether all are gone. False only for processes that cannot be killed.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        return await asyncio.shield(self._ending)

    async def _end(self) -> bool:
        self.signal(signal.SIGKILL)
        # Before the process itself: asyncio's wait lasts until nothing holds the pipes of its output any more.
        gone = await self._wait_for_all(GROUP_END_S)
        if not gone and self._holders is not None:
            await asyncio.to_thread(self._descendants.kill)
            gone = await self._wait_for_all(ESCAPED_END_S)
        if gone:
            await self._process.wait()
        self._descendants.close()
        if self._holders is not None:
            os.close(self._holders)
            self._holders = None
        return gone

    def _are_all_gone(self) -> bool:
        if self._holders is None:
            return True
        poller = select.poll()
        poller.register(self._holders, 0)  # a hang-up is always reported
        return bool(poller.poll(0))

    async def _wait_for_all(self, timeout_s: float) -> bool:
        if self._holders is None or self._are_all_gone():
            return True
        loop, hung_up = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._holders, hung_up.set)
        try:
            async with asyncio.timeout(timeout_s):
                await hung_up.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._holders)
        return True


async def spawn(
    program: Path,
    arguments: Sequence[str],
    *,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    directory: Path | None = None,
) -> Child:
    """Start a program that dies with this process. It reads nothing from its standard input.

    :param environment: variables to add to this process's own.
    :param directory: its working directory; None for this process's own.
    :raises OSError: when it cannot be started.
    """
    holders, held = os.pipe()
    children = system().children
    try:
        with children.ending_with_parent() as prefix:
            process = await asyncio.create_subprocess_exec(
                *prefix,
                str(program),
                *arguments,
                stdin=DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[*pass_fds, held],
                env={**os.environ, **environment},
                cwd=directory,
                process_group=0,
            )
        return Child(process, holders, children.descendants(process.pid, pipe=holders))
    except BaseException:
        os.close(holders)
        raise
    finally:
        os.close(held)
