"""A shell on a terminal of this machine, which takes commands as that of a guest does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from local_ports import local_ports
from local_pty import SHELLS, console_on, shell_command

from pytest_propolis.agent_api.guest_ports import SHELL_PORT
from pytest_propolis.console.console import Console
from pytest_propolis.console.shell import Shell
from pytest_propolis.console.transports.port_line import PortLine

TIMEOUT_S = 20.0
OVER_PORT = " over a port"
ALL_SHELLS = [*SHELLS, *(kind + OVER_PORT for kind in SHELLS)]


class Local(NamedTuple):
    """A shell that takes commands, and its console."""

    console: Console
    shell: Shell

    async def run(self, command: str, *, timeout_s: float = TIMEOUT_S) -> bytes:
        return (await self.shell.run(command, timeout_s=timeout_s)).output

    async def status(self, command: str) -> int:
        return (await self.shell.run(command, timeout_s=TIMEOUT_S, check=False)).status


@contextlib.asynccontextmanager
async def local_shell(kind: str, directory: Path) -> AsyncIterator[Local]:
    async with console_on(kind, directory) as console:
        shell = Shell(console, vm="local")
        await shell.start(shell=shell_command(kind), timeout_s=TIMEOUT_S)
        yield Local(console, shell)


@contextlib.asynccontextmanager
async def shell_over_port(kind: str, directory: Path) -> AsyncIterator[Local]:
    async with (
        local_ports(directory) as ports,
        console_on(kind, directory, inherited=ports.inherited) as console,
        PortLine.over(ports, SHELL_PORT, console) as line,
    ):
        shell = Shell(console, vm="local", port=line)
        await shell.start(shell=shell_command(kind), timeout_s=TIMEOUT_S)
        yield Local(console, shell)


@contextlib.asynccontextmanager
async def any_shell(name: str, directory: Path) -> AsyncIterator[Local]:
    """One of `ALL_SHELLS`."""
    kind = name.removesuffix(OVER_PORT)
    async with (local_shell if kind == name else shell_over_port)(kind, directory) as made:
        yield made
