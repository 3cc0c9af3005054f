"""``propolis exec``: a command in a VM that was kept."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import TYPE_CHECKING

import click

from ..hosts.remote_commands import on_hosts
from .guest_command import command_line, own_statuses

if TYPE_CHECKING:
    from ...hosts.host import HostSpec

__all__ = ["exec"]


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("vm_id", metavar="ID")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@on_hosts
def exec(*, vm_id: str, command: tuple[str, ...], hosts: tuple[HostSpec, ...] | None) -> None:  # noqa: A001
    """Run COMMAND in a VM that was kept, and exit with its status.

    ID is the id shown by `propolis ps --kept` and in reports, or a prefix of it. One word is a line for a shell;
    several are a program and its arguments. Both outputs of COMMAND come to standard output; its
    standard input is empty.

    Exit statuses: that of COMMAND, 125 when there is no such VM or its console shows no prompt, 130 after Ctrl-C.
    """
    with own_statuses():
        sys.exit(asyncio.run(_execute(vm_id, command_line(command), hosts)))


async def _execute(vm_id: str, command: str, hosts: tuple[HostSpec, ...] | None) -> int:
    from .kept_guest import kept_guest

    async with kept_guest(vm_id, hosts) as (_, shell):
        result = await shell.run(command, timeout_s=math.inf, check=False, on_output=_write)
        return result.status


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
