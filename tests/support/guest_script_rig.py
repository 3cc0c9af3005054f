"""The script of a guest's commands, run by a shell of this machine whose second serial port is a pseudo-terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from local_pty import served, shell_command
from websockets.asyncio.client import ClientConnection, unix_connect

from pytest_propolis.coordination.node import Node
from pytest_propolis.propolis_api.serial import SerialConsoleMoved
from pytest_propolis.vm.guest_nodes.commands import Answer, answer_command
from pytest_propolis.vm.guest_nodes.relay import Relay
from pytest_propolis.vm.guest_nodes.script import COMMANDS, SCRIPT

__all__ = ["GuestScript", "guest_script"]

TIMEOUT_S = 30.0


@dataclass
class GuestScript:
    """
    :param command: the shell and its options.
    :param commands: the directory of the script and its links.
    :param port: the script's serial port.
    """

    command: list[str]
    commands: Path
    port: int
    relay: Relay
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, text: str) -> asyncio.subprocess.Process:
        """Start a script that uses the commands, in a process group of its own."""
        functions = "".join(f'{name}() {{ {self._of(name)} "$@"; }}\n' for name in ("propolis", *COMMANDS))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(*self.command, "-c", functions + text), stdin=pipe, stdout=pipe, stderr=pipe, process_group=0
        )
        self.processes.append(process)
        return process

    async def run(self, text: str, typed: bytes = b"") -> tuple[int, str, str]:
        """Return the exit status of a script, and what it wrote."""
        return await self.finish(await self.start(text), typed)

    async def finish(self, process: asyncio.subprocess.Process, typed: bytes = b"") -> tuple[int, str, str]:
        async with asyncio.timeout(TIMEOUT_S):
            output, errors = await process.communicate(typed)
        return process.returncode or 0, output.decode(errors="replace"), errors.decode()

    async def serve(self) -> None:
        """Start the reader of the port, and wait until it runs."""
        command = [*self.command, str(self.commands / "propolis"), "serve"]
        self.processes.append(await asyncio.create_subprocess_exec(*command, process_group=0))
        async with asyncio.timeout(TIMEOUT_S):
            await self.relay.is_up.wait()

    async def boot_again(self, *, while_writing: bytes) -> None:
        """End the reader and start another one, as a reset does that cuts off what the guest writes."""
        await self.aclose()
        os.write(self.port, while_writing)
        self.relay.reset()
        await self.serve()

    async def aclose(self) -> None:
        """End all that was started. Idempotent."""
        while self.processes:
            process = self.processes.pop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _of(self, name: str) -> str:
        return f"{' '.join(self.command)} {self.commands / name}"


@contextlib.asynccontextmanager
async def guest_script(shell: str, directory: Path, node: Node) -> AsyncIterator[GuestScript]:
    """The script of a guest that is a node.

    :param directory: with a short path: it has a socket.
    """
    ours, theirs = pty.openpty()
    commands, place = directory / "bin", directory / "place"
    try:
        commands.mkdir()
        place.mkdir()
        text = SCRIPT.replace("/dev/ttyS1", os.ttyname(theirs)).replace("/tmp/.propolis-nodes", str(place))
        (commands / "propolis").write_text(text)
        for name in COMMANDS:
            (commands / name).symlink_to("propolis")
        socket = directory / "port.sock"
        async with (
            served(ours, socket),
            unix_connect(str(socket), compression=None, proxy=None) as connection,
            _relayed(connection, node) as relay,
            contextlib.aclosing(GuestScript(shell_command(shell).split(), commands, theirs, relay)) as script,
        ):
            await script.serve()
            yield script
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.asynccontextmanager
async def _relayed(connection: ClientConnection, node: Node) -> AsyncIterator[Relay]:
    async def do(words: list[str], typed: bytes) -> Answer:
        return await answer_command(node, words, typed)

    async def follow(_moved: SerialConsoleMoved) -> ClientConnection:
        raise AssertionError

    relay = Relay(connection, do, follow=follow)
    relaying = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
