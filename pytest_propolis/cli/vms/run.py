"""``propolis run``: run a command in a VM of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ...settings import Settings
from ..main import choices
from .guest_command import command_line, log_directory, own_statuses

if TYPE_CHECKING:
    from ...console.channels.process import ProcessOutput
    from ...vm.vm import TestVm

__all__ = ["run"]

COPIED_TO: Final = "/work"


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--copy",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help=f"Copy this directory to {COPIED_TO}, and run COMMAND there.",
)
@click.option("--guest", "guest_name", metavar="NAME", help="The guest; by default that of test_vm.")
@click.option("--memory-mib", type=click.IntRange(64), metavar="MIB", help="How much memory the VM has.")
@choices
def run(
    *,
    settings: Settings,
    command: tuple[str, ...],
    directory: Path | None,
    guest_name: str | None,
    memory_mib: int | None,
) -> None:
    """Run COMMAND in a VM of its own, and exit with its status.

    One word is a line for the guest's shell; several are a program and its arguments. Standard output and standard
    error are those of COMMAND; its standard input is empty.

    Exit statuses: that of COMMAND, 125 when the VM or its files failed, 130 after Ctrl-C.
    """
    chosen = settings.replaced(
        guest=guest_name or settings.guest, memory_mib=memory_mib or settings.memory_mib, keep="never"
    )
    with own_statuses():
        sys.exit(asyncio.run(_run(chosen, command_line(command), directory)))


async def _run(settings: Settings, command: str, directory: Path | None) -> int:
    async with _vm(settings) as vm:
        if directory is not None:
            await vm.put(directory, COPIED_TO)
            command = f"cd {COPIED_TO} && {{ {command}\n}}"
        async with vm.process(command) as process:
            await process.stdin.aclose()
            await asyncio.gather(_copy(process.stdout, sys.stdout.fileno()), _copy(process.stderr, sys.stderr.fileno()))
            return await process.wait()


@contextlib.asynccontextmanager
async def _vm(settings: Settings) -> AsyncIterator[TestVm]:
    from ...hosts.run_hosts import open_hosts
    from ...storage.catalogs.catalog import read_catalogs
    from ...vm.factory import VmFactory
    from ..project import guests_here

    with contextlib.ExitStack() as stack:
        logs = stack.enter_context(log_directory("run"))
        hosts = open_hosts(settings, shared_id=None)
        for host in hosts:
            stack.callback(host.close)
        async with VmFactory.on(
            hosts,
            settings=settings,
            guests=guests_here(),
            group="propolis run",
            log_dir=logs,
            progress=_print_progress,
            made=lambda vm: None,
            artifact=lambda name: read_catalogs(settings.artifacts or ()).find(name),
        ) as factory:
            yield await factory.start("run", channel="port")


async def _copy(output: ProcessOutput, descriptor: int) -> None:
    async for piece in output.pieces():
        await asyncio.to_thread(_write, descriptor, piece)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _print_progress(line: str) -> None:
    click.echo(f"propolis: {line}", err=True)
