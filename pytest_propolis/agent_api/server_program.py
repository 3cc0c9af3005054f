"""A server of the Propolis API that an agent starts as a program of its own, for one VM."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["SERVER_HINT", "ServerProgram", "find_server_program"]

SERVER_HINT: Final = (
    "give engine, the path of a program, the name of an artifact, or http://IP:PORT of a server that runs"
)


class ServerProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program with the command line of ``propolis-server run``.

    :param path: of the program, absolute, on the agent's host.
    :param start_timeout_s: how long it may take to answer.
    """

    path: str
    start_timeout_s: float


def find_server_program(server: str | Path) -> str | None:
    """Return the path of a program on this machine; None if there is none.

    It is found on PATH, and in the virtual environment that this Python is of, which need not be activated.
    """
    return shutil.which(server) or shutil.which(server, path=str(Path(sys.executable).parent))
