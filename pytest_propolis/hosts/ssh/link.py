"""The link process: one connection to one host, shared by all processes of a run.

``python -m pytest_propolis.hosts.ssh.link CONFIG READY_FD``

An asyncssh connection belongs to one event loop, and tests have many; so has each worker of pytest-xdist. The link
offers the socket of the host's agent as a local one. It exits with its last client, or when the host is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Final

import msgspec

from ...agent_api.agent_process import LOG_NAME
from ...agent_api.messages import Fault
from ...errors import HostError, PropolisError
from .bootstrap import RemoteAgent, start_agent, start_program
from .bundle import make_bundle
from .connecting import connect
from .link_messages import (
    AGENT_SOCKET,
    LINK_SOCKET,
    ForwardLocalPort,
    ForwardRemotePort,
    ForwardRemoteSocket,
    GetFile,
    Join,
    LinkConfig,
    LinkReady,
    LinkRequest,
    LinkResponse,
    LinkStarted,
    PutFile,
    RunCommand,
)
from .loader import GOODBYE, LINE_PREFIX
from .transfer import get_file, put_file
from .transport.transport import Transport

__all__ = ["Link"]

FIRST_CLIENT_TIMEOUT_S: Final = 30.0
GOODBYE_TIMEOUT_S: Final = 20.0
HEARTBEAT_S: Final = 1.0
LINE_BYTES: Final = 1 << 20
REASON_TIMEOUT_S: Final = 1.0
"""How long a lost connection may take to say why, after its channels have ended."""

Work = RunCommand | PutFile | GetFile | ForwardRemoteSocket | ForwardRemotePort | ForwardLocalPort
REMOTE_COMMAND: Final = Path(__file__).with_name("remote_command.py")


class Link:
    """An open connection to an agent, and the clients that share it."""

    def __init__(self, config: LinkConfig, transport: Transport, agent: RemoteAgent) -> None:
        self._config = config
        self._transport = transport
        self._agent = agent
        self._over: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._clients: set[asyncio.StreamWriter] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._remote_sockets: dict[str, str] = {}
        self._forwarding = asyncio.Lock()
        self._quiet_s = 0.0
        self._error: Exception | None = None
        """What a channel has raised."""

    @property
    def directory(self) -> Path:
        return Path(self._config.directory)

    async def serve(self, ready_fd: int) -> None:
        """Serve clients until the last has disconnected, or the host is lost."""
        await self._transport.forward(self.directory / AGENT_SOCKET, self._agent.started.socket)
        server = await asyncio.start_unix_server(self._accept, self.directory / LINK_SOCKET, limit=LINE_BYTES)
        (self.directory / LINK_SOCKET).chmod(0o600)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end, None)
        closing = asyncio.create_task(self._transport.wait_closed())
        watches = [
            closing,
            asyncio.create_task(self._closed(closing)),
            *(asyncio.create_task(self._watched(work, closing)) for work in (self._send_heartbeats(), self._listen())),
        ]
        loop.call_later(FIRST_CLIENT_TIMEOUT_S, self._end_unused)
        if not _report(ready_fd, LinkStarted()):
            self._end(None)  # the process that has started it is gone, and no other one knows of it
        reason = await self._over
        server.close()
        self._notify_clients(reason)
        for task in (*watches, *self._requests):
            task.cancel()
        if reason is None:
            await self._send_goodbye()

    def _end(self, reason: str | None) -> None:
        """End the link; None for the reason if the host is not lost."""
        if not self._over.done():
            self._over.set_result(reason)

    def _end_unused(self) -> None:
        if not self._clients:
            self._end(None)

    async def _watched(self, work: Awaitable[None], closing: asyncio.Task[None]) -> None:
        # A lost connection is raised by whatever reads or writes at that moment; the transport may know why a moment
        # later.
        try:
            await work
        except self._transport.errors as error:
            self._error = error
            await asyncio.wait([closing], timeout=REASON_TIMEOUT_S)
            self._end(self._lost(error))

    async def _send_heartbeats(self) -> None:
        """Send a heartbeat each second, and count iterations of this loop without an echo."""
        while True:
            self._agent.channel.stdin.write(b".")
            for _ in range(2):
                await asyncio.sleep(HEARTBEAT_S / 2)
                self._quiet_s += HEARTBEAT_S / 2
            if self._quiet_s >= self._config.silence_s:
                self._end(f"nothing was heard from it for {self._config.silence_s:g} s")
                return

    async def _listen(self) -> None:
        """Read the watchdog's output: echoes of heartbeats, and how the agent ended."""
        text = b""
        while data := await self._agent.channel.stdout.read(4096):
            self._quiet_s = 0.0
            text += data.strip(b".") if not text else data
            if text.endswith(b"\n") and (start := text.find(LINE_PREFIX.encode())) >= 0:
                self._end(_how_agent_ended(msgspec.json.decode(text[start + len(LINE_PREFIX) :])))
                return
        self._end("its watchdog ended, and the agent with it")

    async def _closed(self, closing: asyncio.Task[None]) -> None:
        try:
            await closing
        except self._transport.errors as error:
            self._end(self._lost(error))
        else:
            self._end(self._lost(self._error) if self._error else f"{self._transport.label} was closed")

    def _lost(self, error: Exception) -> str:
        return f"{self._transport.label} was lost: {error or type(error).__name__}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            request = msgspec.json.decode(await reader.readline(), type=LinkRequest)
            if isinstance(request, Join):
                await self._keep_client(reader, writer)
            else:
                await self._answer_request(request, reader, writer)
        except (ConnectionError, msgspec.DecodeError):
            pass  # it disconnected before the answer
        finally:
            self._requests.discard(task)
            writer.close()

    async def _answer_request(self, request: Work, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a request, or cancel it if its client disconnects."""
        handling = asyncio.create_task(self._handle(request))
        leaving = asyncio.create_task(reader.read())
        try:
            await asyncio.wait([handling, leaving], return_when=asyncio.FIRST_COMPLETED)
            if handling.done():
                _answer(writer, handling.result())
        finally:
            handling.cancel()
            leaving.cancel()
            await asyncio.wait([handling, leaving])

    async def _keep_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        socket, version = str(self.directory / AGENT_SOCKET), self._agent.started.version
        there = self._agent.started.socket
        remedy = self._transport.remedy.format(host=self._config.destination.name)
        ready = LinkReady(socket=socket, agent_socket=there, version=version, facts=self._agent.facts, remedy=remedy)
        _answer(writer, LinkResponse(ready=ready))
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        finally:
            self._clients.discard(writer)
            if not self._clients:
                # The client reads the end of its connection when this process has ended; also where its agent was
                # quicker to report that it leaves.
                with contextlib.suppress(OSError):  # it is closed already
                    os.dup(writer.get_extra_info("socket").fileno())
                self._end(None)

    async def _handle(self, request: Work) -> LinkResponse:
        host = self._config.destination.name
        try:
            match request:
                case RunCommand(command=command):
                    return await self._run(command)
                case PutFile(local=local, remote=remote, once=once):
                    await put_file(self._transport, host, Path(local), remote, python=self._config.python, once=once)
                case ForwardRemoteSocket(local=local):
                    return LinkResponse(path=await self._forward_remote(local))
                case ForwardRemotePort(port=port):
                    return LinkResponse(port=await self._transport.forward_remote_port(port))
                case ForwardLocalPort(port=port):
                    return LinkResponse(port=await self._transport.forward_port(port))
                case GetFile(local=local, remote=remote):
                    await get_file(self._transport, host, remote, Path(local), python=self._config.python)
        except PropolisError as error:
            return LinkResponse(fault=Fault.of(error))
        except self._transport.errors as error:
            return LinkResponse(fault=Fault.of(HostError(f"host {host}: {error}")))
        return LinkResponse(status=0)

    async def _run(self, command: str) -> LinkResponse:
        channel = await start_program(self._transport, REMOTE_COMMAND.read_text(), python=self._config.python)
        try:
            channel.stdin.write(msgspec.json.encode({"command": command}) + b"\n")
            output, stderr = await asyncio.gather(channel.stdout.read(-1), channel.stderr.read(-1))
            return LinkResponse(status=await channel.status(), output=_marked(output), stderr=_marked(stderr))
        finally:
            channel.stdin.close()
            channel.kill()

    async def _forward_remote(self, local: str) -> str:
        """Forward a socket on the host to a local one; return its path there, in the agent's directory."""
        async with self._forwarding:
            if local not in self._remote_sockets:
                path = str(Path(self._agent.started.socket).with_name(f"peer-{secrets.token_hex(4)}.sock"))
                await self._transport.forward_remote(path, Path(local))
                self._remote_sockets[local] = path
        return self._remote_sockets[local]

    def _notify_clients(self, reason: str | None) -> None:
        """Publish why the host is lost before the sockets close: a client that reads their end finds the reason."""
        for writer in self._clients if reason else ():
            _answer(writer, LinkResponse(lost=reason))

    async def _send_goodbye(self) -> None:
        """Tell the watchdog to end the agent, and wait until it has."""
        channel = self._agent.channel
        with contextlib.suppress(*self._transport.errors):
            channel.stdin.write(GOODBYE)
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await channel.status()


def _marked(output: bytes) -> bytes:
    """Return a command's output without the login shell's before it; all output if the command did not start."""
    before, mark, written = output.partition(f"{LINE_PREFIX}\n".encode())
    return written if mark else before


def _how_agent_ended(message: dict[str, object]) -> str:
    if not message.get("ended"):
        return "its agent has left"
    log = message.get("log")
    lines = [f"  | {line}" for line in log] if isinstance(log, list) else []
    return "\n".join([f"its agent ended with status {message['ended']}", *lines])


def _answer(writer: asyncio.StreamWriter, answer: LinkResponse) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(msgspec.json.encode(answer) + b"\n")


def _report(ready_fd: int, message: LinkStarted) -> bool:
    """Return whether anything can read it."""
    try:
        os.write(ready_fd, msgspec.json.encode(message) + b"\n")
    except BrokenPipeError:
        return False
    finally:
        os.close(ready_fd)
    return True


@contextlib.asynccontextmanager
async def _opened(config: LinkConfig) -> AsyncIterator[Link]:
    transport = await connect(config.destination, control=Path(config.directory, "ssh.sock"))
    order = {
        "agent": {
            "run": config.run,
            "options": msgspec.to_builtins(config.options),
            "qemu": config.qemu,
            "artifact_dir": config.artifact_dir,
        },
        "log_name": LOG_NAME,
        "silence_s": config.silence_s + config.host_silence_margin_s,
        "grace_s": config.grace_s,
    }
    try:
        agent = await start_agent(
            transport,
            config.destination.name,
            order,
            lambda python: make_bundle(python, cache=Path(config.bundle_cache)),
            python=config.python,
        )
        yield Link(config, transport, agent)
    finally:
        transport.abort()
        with contextlib.suppress(*transport.errors):
            await transport.wait_closed()


async def _run_link(config: LinkConfig, ready_fd: int) -> None:
    try:
        async with _opened(config) as link:
            await link.serve(ready_fd)
    except PropolisError as error:
        _report(ready_fd, LinkStarted(fault=Fault.of(error)))
    finally:
        shutil.rmtree(config.directory, ignore_errors=True)


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(_run_link(msgspec.json.decode(sys.argv[1], type=LinkConfig), int(sys.argv[2])))
