"""A connection to an SSH host for commands of this project that need no agent."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from ...errors import HostError
from ...storage.user_directories import cache_directory
from ..host import CommandOutput, HostSpec, Machine
from ..joined.messages import JoinDestination
from ..run_directory import make_private_directory
from .bootstrap import start_command
from .bundle import make_bundle
from .connecting import connect
from .host_options import check_options, destination_of
from .link_client import link_base
from .transport.transport import SshDestination, Transport

__all__ = ["SshConnection", "connected", "open_connection"]

LINE_PREFIX: Final = b"propolis1 "
MEASURE: Final = "exec sh -c 'echo propolis1 $(nproc) $(getconf _PHYS_PAGES) $(getconf PAGE_SIZE)'"
"""The mark tells the answer from what a log-in shell's start-up files print."""

VARIABLES: Final = {"qemu": "PROPOLIS_QEMU", "artifact_dir": "PROPOLIS_ARTIFACT_DIR"}
"""The environment variables that mean the same to a command as the host's options do to its agent."""


class SshConnection:
    """A `HostConnection` over SSH.

    :param directory: a private directory of this machine for sockets, as long as the connection is open.
    """

    def __init__(self, spec: HostSpec, transport: Transport, directory: Path) -> None:
        self._spec = spec
        self._transport = transport
        self._directory = directory

    async def run(self, program: str, arguments: Sequence[str]) -> CommandOutput:
        """Call a function of this project on the host, to its end.

        :param program: the module and the function, which takes the arguments: ``package.module:function``.
        :raises HostError: when it cannot be started there, or the connection is lost.
        """
        options = self._spec.options
        channel = await start_command(
            self._transport,
            self._spec.name,
            {
                "program": program,
                "arguments": list(arguments),
                "environment": {VARIABLES[name]: options[name] for name in VARIABLES if name in options},
            },
            lambda python: make_bundle(python, cache=cache_directory()),
            python=options.get("python", "python3"),
        )
        try:
            output, stderr = await channel.stdout.read(-1), await channel.stderr.read(-1)
            status = await channel.status()
        except self._transport.errors as error:
            raise HostError(
                f"host {self._spec.name}: the connection was lost: {error or type(error).__name__}"
            ) from None
        return CommandOutput(
            status=status, output=output.decode(errors="replace"), stderr=stderr.decode(errors="replace")
        )

    async def measure(self) -> Machine:
        """Query the processors and the memory of the host's machine.

        :raises HostError: when it does not answer as it should.
        """
        try:
            channel = await self._transport.start(MEASURE)
            output = await channel.stdout.read(-1)
            processors, pages, page_bytes = map(int, output[output.index(LINE_PREFIX) :].split()[1:4])
        except ValueError:
            raise HostError(f"host {self._spec.name}: it answered {output[-200:]!r}") from None
        except self._transport.errors as error:
            raise HostError(f"host {self._spec.name}: {error or type(error).__name__}") from None
        return Machine(processors=processors, memory_mib=pages * page_bytes >> 20)

    async def forward(self, remote: str) -> Path:
        """Forward a local socket to one of the host, while the connection is open; return its path.

        :raises HostError: when SSH refuses.
        """
        await self._open()
        local = self._directory / f"{secrets.token_hex(4)}.sock"
        await self._transport.forward(local, remote)
        return local

    async def forward_port(self, remote: int) -> int:
        """Forward a loopback port of this machine to one of the host, while the connection is open; return its number.

        :raises HostError: when SSH refuses.
        """
        await self._open()
        return await self._transport.forward_port(remote)

    async def _open(self) -> None:
        """Ensure that the connection is open: OpenSSH's is open once a command runs."""
        channel = await self._transport.start("exec cat")
        channel.stdin.write(b"\n")
        await channel.stdout.readline()


@contextlib.asynccontextmanager
async def open_connection(spec: HostSpec) -> AsyncIterator[SshConnection]:
    """Connect to a host, for the length of the block.

    :raises SettingsError: when one of its options is wrong.
    :raises HostError: when it cannot be reached.
    """
    check_options(spec)
    async with connected(spec, destination_of(spec)) as connection:
        yield connection


@contextlib.asynccontextmanager
async def connected(spec: HostSpec, destination: SshDestination | JoinDestination) -> AsyncIterator[SshConnection]:
    """As `open_connection`, with options that are checked already."""
    make_private_directory(link_base())
    directory = link_base() / f"command-{secrets.token_hex(4)}"
    make_private_directory(directory)
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_EX)  # else it would count as abandoned
    try:
        transport = await connect(destination, control=directory / "ssh.sock")
        try:
            yield SshConnection(spec, transport, directory)
        finally:
            transport.abort()
            with contextlib.suppress(*transport.errors):
                await transport.wait_closed()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)
