"""Run a program to completion, without letting it outlive the calling task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..operating_system.registry import system

__all__ = ["Finished", "run_program"]


@dataclass(frozen=True, slots=True)
class Finished:
    """The exit status and output of a program."""

    status: int
    output: str
    complaint: str

    def last_lines(self, count: int = 5) -> str:
        """Return the last lines of standard error, or of standard output if that is empty."""
        text = self.complaint.strip() or self.output.strip()
        return "\n".join(text.splitlines()[-count:]) or f"it said nothing, and ended with status {self.status}"


async def run_program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    ends_with_parent: bool = False,
) -> Finished:
    """Run a program without input, in a session of its own, with messages in English.

    When the task is cancelled the program is killed and reaped first.

    :param environment: variables to add to this process's environment.
    :param directory: its working directory; None for this process's own.
    :param ends_with_parent: have it killed also when this process is.
    :raises OSError: if it cannot be started.
    """
    with system().children.ending_with_parent() if ends_with_parent else nullcontext(()) as prefix:
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *argv,
            cwd=directory,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            start_new_session=True,  # Ctrl-C reaches it only through our cancellation
        )
    try:
        output, complaint = await process.communicate()
    finally:
        await _end(process)
    assert process.returncode is not None
    return Finished(process.returncode, output.decode(errors="replace"), complaint.decode(errors="replace"))


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children are in its session, and so in its group
        await process.wait()
