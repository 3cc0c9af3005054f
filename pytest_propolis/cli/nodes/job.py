"""``propolis job``: run several programs as nodes of one group, and merge what they write."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import shlex
import signal
import stat
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import click

from ...agent_api.programs import ProgramFile, StartProgram
from ...coordination.command_results import Status, exit_status
from ...coordination.group import GROUP_VARIABLE, NodeGroup
from ...coordination.node import Node
from ...coordination.run_group import opened_group
from ...errors import HostError, PropolisError, SettingsError
from ...hosts.host import Host
from ...hosts.run_hosts import coordination_host, coordination_id, open_hosts
from ...settings import Settings
from ..main import settings_options
from .attached import interruption
from .host_addresses import address_on
from .host_program import HostProgram, host_program
from .job_file import JobNode, read_job

__all__ = ["job"]

LONGEST_LINE: Final = 1 << 20
KEPT_LINES: Final = 30
SHELL: Final = "/bin/sh"
SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@functools.partial(settings_options, names=("hosts", "coordination"))
def job(settings: Settings, file: Path) -> None:
    """Run the programs of FILE as nodes of one group, and print their output in the order of time.

    FILE is TOML with a table [[node]] for each program: name, command, and if need be host, address, labels, vital,
    directory, files and environment. If one program fails, the others are ended. The exit status is that of the first
    one that failed; 5 when a host or the store was lost.
    """
    nodes = read_job(file)
    try:
        raise SystemExit(asyncio.run(_run(nodes, file.absolute().parent, settings)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(128 + signal.SIGINT) from None


async def _run(nodes: tuple[JobNode, ...], directory: Path, settings: Settings) -> int:
    task = asyncio.current_task()
    assert task is not None
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    shared = secrets.token_hex(16)
    hosts = open_hosts(settings, shared_id=shared)
    run = coordination_id(shared)
    here = coordination_host(settings, hosts, run=run)
    with contextlib.ExitStack() as stack:
        for host in {*hosts, here}:
            stack.callback(host.close)
        places = _places(nodes, {host.name: host for host in hosts}, here)
        await _connect({host.name: host for host in places.values()})
        async with opened_group(settings.coordination, f"job-{run}", run=run, host=lambda: here) as group:
            running = _Job(group, directory, here)
            async with asyncio.TaskGroup() as programs:
                for node in nodes:
                    programs.create_task(running.run(node, places[node.name]))
            return running.status


def _places(nodes: tuple[JobNode, ...], hosts: dict[str, Host], here: Host) -> dict[str, Host]:
    """Return the host of each node, by the node's name.

    :raises SettingsError: when there is no such host.
    """
    places = {}
    for node in nodes:
        name = node.host or here.name
        assert isinstance(name, str)
        host = here if not node.host else hosts.get(name)
        if host is None:
            raise SettingsError(
                f"node {node.name!r}: there is no host {name!r}",
                hint=f"the inventory (--propolis-hosts) has {', '.join(hosts)}",
            )
        if not host.shares_files:
            _check_place(node)
        places[node.name] = host
    return places


def _check_place(node: JobNode) -> None:
    """
    :raises SettingsError: when a program on another machine cannot have its directory or its files.
    """
    where = f"node {node.name!r} on host {node.host!r}"
    if node.directory is not None and not Path(node.directory).is_absolute():
        raise SettingsError(f"{where}: its directory must be an absolute path there")
    if node.directory is not None and node.files:
        raise SettingsError(f"{where}: files are for a directory of its own", hint="give files or directory, not both")
    for name in node.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise SettingsError(f"{where}: {name!r} is not below the directory of the job's file")


async def _connect(hosts: dict[str, Host]) -> None:
    """Connect to all hosts, before the first program runs.

    :raises HostError: when one of them cannot be used.
    """

    async def connect(host: Host) -> None:
        await (await host.client()).aclose()

    for outcome in await asyncio.gather(*map(connect, hosts.values()), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


class _Job:
    """The programs of a job, while they run.

    :param here: this machine.
    """

    def __init__(self, group: NodeGroup, directory: Path, here: Host) -> None:
        self._group = group
        self._directory = directory
        self._here = here
        self._begun_s = time.monotonic()
        self._failed: list[int] = []

    @property
    def status(self) -> int:
        """That of the first program that failed. One that was ended because of another one may end before that."""
        causes = [status for status in self._failed if status != Status.POISONED]
        return next(iter(causes or self._failed), 0)

    async def run(self, node: JobNode, host: Host) -> None:
        """Run a program to its end, as a node, which fails with it."""
        try:
            status = await self._run_as_node(node, host)
        except PropolisError as error:
            self._show(node.name, f"propolis: {error}")
            status = Status.LOST if isinstance(error, HostError) else exit_status(error)
        if status and node.vital:
            self._failed.append(status)

    async def _run_as_node(self, node: JobNode, host: Host) -> int:
        group = self._group
        request = await self._request(node, host)
        async with await group.join(node.name, address=node.address, labels=node.labels, vital=node.vital) as member:
            lines: deque[str] = deque(maxlen=KEPT_LINES)
            async with host_program(host, request) as program, _ended_with(member, program) as cause:
                async for line in _lines(program):
                    self._show(node.name, line)
                    lines.append(line)
                status = program.status or 0
                if status and cause.done():
                    raise cause.result()
            self._show(node.name, f"ended with status {status}: {shlex.quote(node.command)}")
            if status:
                await member.fail(f"{SHELL} ended with status {status}", status=status, output=lines)
        return status

    async def _request(self, node: JobNode, host: Host) -> StartProgram:
        group = self._group
        progress = lambda text: self._show(node.name, f"propolis: {text}")  # noqa: E731
        address = await address_on(host, group.address, store_host=self._here, progress=progress)
        own = {**group.environment(node.name), GROUP_VARIABLE: address, **node.environment}
        if host.shares_files:
            directory = str(self._directory / (node.directory or "."))
            environment = {**os.environ, **own}
            return StartProgram(name=node.name, command=node.command, environment=environment, directory=directory)
        files = [await self._provide(name, host, progress) for name in node.files]
        return StartProgram(
            name=node.name,
            command=node.command,
            environment=own,
            directory=node.directory or "",
            files=tuple(files),
        )

    async def _provide(self, name: str, host: Host, progress: Callable[[str], None]) -> ProgramFile:
        path = self._directory / name
        there = await host.provide(path, progress)
        return ProgramFile(name=name, path=there, mode=stat.S_IMODE(path.stat().st_mode))

    def _show(self, name: str, text: str) -> None:
        for line in text.splitlines() or [""]:
            try:
                click.echo(f"{time.monotonic() - self._begun_s:9.3f} {name}: {line}")
            except BrokenPipeError:  # what reads it has gone: the programs go on
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)


@contextlib.asynccontextmanager
async def _ended_with(member: Node, program: HostProgram) -> AsyncIterator[asyncio.Task[PropolisError]]:
    """Have a program ended when its node must not go on; yield what returns the reason."""

    async def end() -> PropolisError:
        reason = await interruption(member)
        await program.end()
        return reason

    ending = asyncio.create_task(end())
    try:
        yield ending
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)


async def _lines(program: HostProgram) -> AsyncIterator[str]:
    """Yield the lines of a program's output as they come; a very long one in several parts."""
    rest = b""
    async for data in program.output():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")
