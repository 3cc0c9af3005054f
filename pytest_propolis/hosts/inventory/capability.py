"""A capability of a host, and a probe that runs a program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...storage.programs import Finished, run_program

__all__ = ["Capability", "try_program"]

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Capability:
    """One capability that a host has or lacks.

    :param detail: the finding: a version, a path, or an error.
    :param remedy: how to obtain the capability; None if there is nothing to do.
    """

    name: str
    ok: bool
    detail: str
    remedy: str | None = None


async def try_program(name: str, argv: Sequence[str], *, found: Callable[[Finished], str], remedy: str) -> Capability:
    """Run a program that can only succeed where a host has a capability.

    :param found: returns the detail of a success.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            finished = await run_program(argv)
    except FileNotFoundError:
        return Capability(name, ok=False, detail=f"there is no {Path(argv[0]).name}", remedy=remedy)
    except TimeoutError:
        return Capability(name, ok=False, detail=f"{argv[0]} did not end in {_TIMEOUT_S:.0f} s", remedy=remedy)
    except OSError as error:
        return Capability(name, ok=False, detail=f"{argv[0]} cannot be started: {error.strerror}", remedy=remedy)
    if finished.status != 0:
        return Capability(name, ok=False, detail=finished.last_lines(1), remedy=remedy)
    return Capability(name, ok=True, detail=found(finished))
