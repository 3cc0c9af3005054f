"""The features of a server program, from its help: options, and formats of disks."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Final

from ...agent_api.server_program import ENGINE_PROGRAM
from ...errors import HostError
from ...operating_system.registry import system
from ...storage.programs import executable_program, run_program

__all__ = ["QCOW2", "cannot_be_run", "help_names"]

HELP_TIMEOUT_S: Final = 20.0
QCOW2: Final = "qcow2"
"""The word in the help of a program that reads disks in this format, from files with this suffix."""

_HELP: Final[dict[tuple[str, int], str]] = {}
"""What programs say of themselves, by path and time of the last change."""


async def help_names(program: str, name: str) -> bool:
    """Return whether the help of a program names an option, or another word. Each program is asked once.

    :param program: its path; or `ENGINE_PROGRAM`, which knows all words that are asked for.
    :raises HostError: when it cannot be run.
    """
    if program == ENGINE_PROGRAM:
        return True
    try:
        version = program, Path(program).stat().st_mtime_ns
        if version not in _HELP:
            _HELP[version] = await _help(Path(program))
    except TimeoutError:
        return False
    except OSError as error:
        raise cannot_be_run(program, error) from None
    return name in _HELP[version]


async def _help(program: Path) -> str:
    """Ask a program; a copy, if it is an artifact from a store, where nothing is executable."""
    with tempfile.TemporaryDirectory(prefix="propolis-help-") as directory:
        program = executable_program(program, Path(directory))
        async with asyncio.timeout(HELP_TIMEOUT_S):
            help_text = await run_program([*system().children.privileges, str(program), "run", "--help"])
    return help_text.output + help_text.stderr


def cannot_be_run(program: str, error: OSError) -> HostError:
    """Return the error for a program that the operating system does not start."""
    return HostError(f"{program} cannot be run: {error.strerror or error}", hint="correct --propolis-server")
