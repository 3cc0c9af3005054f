"""Server programs of their own, over TCP, which migrate VMs to each other: what `migration_rig` is in one process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from migration_rig import RemoteNode
from server_program import ServerProgram, server_program

__all__ = ["ProgramRig", "program_rig"]


class ProgramRig:
    """Any number of programs.

    :param base: the directory for their files.
    """

    def __init__(self, base: Path, programs: contextlib.AsyncExitStack) -> None:
        self._base = base
        self._programs = programs
        self._started: list[ServerProgram] = []

    async def node(self, name: str) -> RemoteNode:
        program = await self._programs.enter_async_context(
            server_program(
                "bios", "127.0.0.1:0", "--accelerator", "tcg", environment={"XDG_RUNTIME_DIR": str(self._base)}
            )
        )
        self._started.append(program)
        return RemoteNode(client=program.client)

    async def aclose(self) -> None:
        """End all programs in order, and check that they leave nothing behind."""
        for program in self._started:
            status, errors = await program.end()
            assert status == 0, errors
        assert list((self._base / "propolis").iterdir()) == []


@contextlib.asynccontextmanager
async def program_rig() -> AsyncIterator[ProgramRig]:
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as base:
        async with contextlib.AsyncExitStack() as programs:
            rig = ProgramRig(Path(base), programs)
            yield rig
            await rig.aclose()
