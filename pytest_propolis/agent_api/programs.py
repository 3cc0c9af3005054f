"""Messages between clients and agents about programs on the agent's host.

A client opens a websocket at `PROGRAMS_PATH` and sends `StartProgram`. The agent sends the program's output in binary
messages, and at last `ProgramEnded`. The client may send `EndProgram`; if it disconnects, the program is ended, too.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .messages import Fault

__all__ = ["PROGRAMS_PATH", "EndProgram", "ProgramEnded", "ProgramFile", "StartProgram"]

PROGRAMS_PATH: Final = "/programs"


class ProgramFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is copied into a program's own directory.

    :param name: its path there.
    :param path: where it is on the agent's host.
    """

    name: str
    path: str
    mode: int


class StartProgram(msgspec.Struct, frozen=True, kw_only=True):
    """Request that a program be run. It ends with its client, and what it has started ends with it.

    :param name: by which it is listed.
    :param command: for ``/bin/sh``, which finds the command ``propolis`` on its path.
    :param environment: variables to add to those of the agent. They may be secret.
    :param directory: where it runs, on the host; empty for a directory of its own, which is removed when it has ended.
    :param files: of a directory of its own.
    """

    name: str = ""
    command: str
    environment: dict[str, str] = {}
    directory: str = ""
    files: tuple[ProgramFile, ...] = ()


class EndProgram(msgspec.Struct, frozen=True, kw_only=True):
    """Request that the program be ended: with SIGTERM, and a few seconds later with SIGKILL."""


class ProgramEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The program has ended, and all that it had started.

    :param status: as a shell has it: 128 and the signal's number for one that a signal ended.
    :param fault: why it was not started.
    """

    status: int = 0
    fault: Fault | None = None
