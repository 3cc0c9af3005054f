"""Child processes that cannot outlive their parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Protocol

from ...storage.programs import parent_death_prefix

__all__ = ["ChildRecord", "Journal", "NoJournal", "reap", "spawn"]


class ChildRecord(Protocol):
    """What somebody writes down about one child process."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that the child carries, so that it is found even if its pid was never written down."""

    def live(self, pid: int) -> None:
        """The child runs."""

    def gone(self) -> None:
        """The child was waited for."""


class Journal(Protocol):
    """Who keeps account of child processes."""

    def intend(self) -> ChildRecord:
        """A child is about to be started; write that down first."""


class NoJournal:
    """Keeps no account: for children that nobody could miss."""

    environment: Mapping[str, str] = MappingProxyType({})

    def intend(self) -> ChildRecord:
        return self

    def live(self, pid: int) -> None:
        pass

    def gone(self) -> None:
        pass


async def spawn(
    program: Path,
    arguments: Sequence[str],
    *,
    log: IO[bytes],
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> asyncio.subprocess.Process:
    """Start a program that dies with this process; both of its output streams go to `log`.

    :param environment: variables to add to this process's own.
    """
    return await asyncio.create_subprocess_exec(
        *parent_death_prefix(),
        str(program),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=pass_fds,
        env={**os.environ, **environment},
    )


async def reap(process: asyncio.subprocess.Process) -> int:
    """Kill a child if it still runs, and wait until it is gone, whatever happens to the caller meanwhile."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return await asyncio.shield(process.wait())
