"""A connection made by OpenSSH's own client, for configurations that asyncssh does not honour.

The first command opens the connection; later ones and forwards share it through a control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import ClassVar, Final

from ....errors import HostError
from ....operating_system.registry import system
from ....storage.programs import run_program
from .transport import SSH_LABEL, SSH_REMEDY, Channel, SshDestination, remote_port_refused, remote_socket_refused

__all__ = ["OpensshTransport"]

LOOPBACK: Final = "127.0.0.1"


class OpensshTransport:
    """A connection of the program ``ssh``, which never asks questions.

    :param control: the path of the control socket.
    """

    errors: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError)
    label: ClassVar[str] = SSH_LABEL
    remedy: ClassVar[str] = SSH_REMEDY

    def __init__(self, destination: SshDestination, *, control: Path) -> None:
        self._destination = destination
        self._control = control
        self._first: Process | None = None
        self._processes: list[Process] = []

    async def start(self, command: str) -> Channel:
        with system().children.ending_with_parent() as prefix:
            process = await asyncio.create_subprocess_exec(
                *prefix,
                *self._arguments("-T", "-o", f"ControlMaster={'no' if self._first else 'yes'}"),
                command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        self._first = self._first or process
        self._processes.append(process)

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                process.kill()

        return Channel(process.stdin, process.stdout, process.stderr, process.wait, kill)

    async def forward(self, local: Path, remote: str) -> None:
        done = await run_program([*self._arguments("-O", "forward", "-L", f"{local}:{remote}")])
        if done.status != 0:
            raise HostError(f"host {self._destination.name}: SSH refuses to forward a socket: {done.last_lines()}")

    async def forward_remote(self, remote: str, local: Path) -> None:
        done = await run_program([*self._arguments("-O", "forward", "-R", f"{remote}:{local}")])
        if done.status != 0:
            raise remote_socket_refused(self._destination.name, done.last_lines())

    async def forward_port(self, remote: int) -> int:
        with socket.socket() as probe:  # ssh does not tell which port it has chosen for a local forward
            probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
        done = await run_program([*self._arguments("-O", "forward", "-L", f"{LOOPBACK}:{port}:{LOOPBACK}:{remote}")])
        if done.status != 0:
            raise HostError(f"host {self._destination.name}: SSH refuses to forward a port: {done.last_lines()}")
        return port

    async def forward_remote_port(self, local: int) -> int:
        done = await run_program([*self._arguments("-O", "forward", "-R", f"{LOOPBACK}:0:{LOOPBACK}:{local}")])
        if done.status != 0:
            raise remote_port_refused(self._destination.name, done.last_lines())
        return int(done.output)

    async def wait_closed(self) -> None:
        if self._first:
            await self._first.wait()

    def abort(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        self._control.unlink(missing_ok=True)

    def _arguments(self, *further: str) -> list[str]:
        files = self._destination.config
        options = ("BatchMode=yes", "RemoteCommand=none", "ForwardAgent=no", "ForwardX11=no", "ControlPersist=no")
        arguments = ["ssh", *(("-F", files[0]) if files else ()), "-o", f"ControlPath={self._control}"]
        options_given = [argument for option in options for argument in ("-o", option)]
        return [*arguments, *options_given, *further, self._destination.address]
