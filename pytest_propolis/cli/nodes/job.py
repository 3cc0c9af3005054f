"""``propolis job``: run several programs as nodes of one group, and merge what they write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import time
import tomllib
from pathlib import Path
from typing import Annotated, Final

import click
import msgspec

from ...coordination.group import NodeGroup
from ...coordination.run_group import opened_group
from ...errors import SettingsError
from ...hosts.local import LocalHost
from ...hosts.run_directory import run_token
from ...settings import Settings
from .attached import Status

__all__ = ["job"]

COMMAND: Final = (sys.executable, "-c", "from pytest_propolis.cli import main; main()")
LONGEST_LINE: Final = 1 << 20


class JobNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program of a job.

    :param command: for ``/bin/sh``.
    :param directory: where it runs; relative to the file.
    """

    name: str
    command: str
    address: str = ""
    labels: tuple[str, ...] = ()
    vital: bool = True
    directory: str = "."
    environment: dict[str, str] = {}


class JobFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job: which program is on which node."""

    node: Annotated[tuple[JobNode, ...], msgspec.Meta(min_length=1)]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def job(file: Path) -> None:
    """Run the programs of FILE as nodes of one group, and print their output in the order of time.

    FILE is TOML with a table [[node]] for each program: name, command, and if need be address, labels, vital, directory
    and environment. If one program fails, the others are ended. The exit status is that of the first one that failed.
    """
    raise SystemExit(asyncio.run(_run(_read(file), file.absolute().parent, Settings.resolve(command_line={}, ini={}))))


def _read(file: Path) -> JobFile:
    hint = "it is TOML with a table [[node]], which has name and command, for each program"
    try:
        read = msgspec.convert(tomllib.loads(file.read_text()), JobFile)
    except OSError as error:
        raise SettingsError(f"job {file} cannot be read: {error.strerror}", hint=hint) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"job {file}: {error}", hint=hint) from None
    names = [node.name for node in read.node]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"job {file} has two nodes {twice!r}", hint="give each its own name")
    return read


async def _run(wanted: JobFile, directory: Path, settings: Settings) -> int:
    run = run_token(None)
    host = LocalHost(settings, run_id=run)
    try:
        async with opened_group(settings.coordination, f"job-{run}", run=run, host=lambda: host) as group:
            begun_s = time.monotonic()
            failed: list[int] = []
            async with asyncio.TaskGroup() as programs:
                for node in wanted.node:
                    programs.create_task(_run_node(node, group, directory, begun_s, failed))
            # A program that was ended because of another one may end before that.
            causes = [status for status in failed if status != Status.POISONED]
            return next(iter(causes or failed), 0)
    finally:
        host.close()


async def _run_node(node: JobNode, group: NodeGroup, directory: Path, begun_s: float, failed: list[int]) -> None:
    options = [*(["--address", node.address] if node.address else []), *([] if node.vital else ["--not-vital"])]
    options += [word for label in node.labels for word in ("--label", label)]
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "node", "run", "--as", node.name, *options, "--", "/bin/sh", "-c", node.command),
        cwd=directory / node.directory,
        env={**os.environ, **group.environment(node.name), **node.environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=LONGEST_LINE,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            _show(node.name, line.decode(errors="replace").rstrip("\n"), begun_s)
        status = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
    _show(node.name, f"ended with status {status}: {shlex.quote(node.command)}", begun_s)
    if status and node.vital:
        failed.append(status)


def _show(name: str, line: str, begun_s: float) -> None:
    click.echo(f"{time.monotonic() - begun_s:9.3f} {name}: {line}")
