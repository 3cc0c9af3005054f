"""A client of the link process to one host: it joins the run's link, or starts it if it is the first."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from ...errors import HostError, HostLost
from ...ledger.rendezvous import Rendezvous
from ...operating_system.python_processes import spawn_helper
from ...storage.files import last_lines
from ..run_directory import base_directory, make_private_directory
from .link_messages import (
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

__all__ = ["JoinedLink", "join_or_start", "link_base", "remove_abandoned_links"]

ABANDONED_S: Final = 60.0
EXPLAIN_S: Final = 1.0
EXPLAIN_POLL_S: Final = 0.05
LOG_NAME: Final = "link.log"
LOG_LINES: Final = 15
LINE_BYTES: Final = 64 << 20

_children: Final[list[subprocess.Popen[bytes]]] = []
"""Link processes that this process started: they may outlive what needed them, and are not warned about."""


def link_base() -> Path:
    """Return the directory of this user's links: beside that of the agents, whose reaper knows only agents."""
    base = base_directory()
    return base.with_name(f"{base.name}-links")


class JoinedLink:
    """A link that this process is a client of, until `close`. It is tied to no event loop.

    :param connection: while it is open, the link stays.
    """

    def __init__(self, host: str, connection: socket.socket, ready: LinkReady) -> None:
        self.host = host
        self.ready = ready
        self._connection = connection
        self._received = b""
        self._loss: str | None = None

    @property
    def agent_socket(self) -> Path:
        """The local socket that is forwarded to the host's agent."""
        return Path(self.ready.socket)

    def loss(self) -> HostLost | None:
        """Return why the host is lost, or None while it is not. It does not wait."""
        if self._loss is None:
            self._loss = self._read_loss()
        if self._loss is None:
            return None
        return HostLost(
            f"host {self.host} is lost: {self._loss}",
            host=self.host,
            reason=self._loss,
            hint=f"what the run had there is removed there; {self.ready.remedy}",
        )

    async def explain(self, *, within_s: float = EXPLAIN_S) -> HostLost | None:
        """Return why the host is lost when something there does not answer; None if the link knows of nothing.

        The word of the link may come after the end of a connection that the link forwards.
        """
        deadline = time.monotonic() + within_s
        while True:
            lost = self.loss()
            if lost is not None or time.monotonic() >= deadline:
                return lost
            await asyncio.sleep(EXPLAIN_POLL_S)

    def _read_loss(self) -> str | None:
        has_ended = True
        try:
            while data := self._connection.recv(4096, socket.MSG_DONTWAIT):
                self._received += data
        except BlockingIOError:
            has_ended = False
        except OSError:
            pass
        *lines, _ = self._received.split(b"\n")
        for line in lines:
            if (reason := msgspec.json.decode(line, type=LinkResponse).lost) is not None:
                return reason
        return "the link process on this machine ended" if has_ended else None

    async def run(self, command: str, *, timeout_s: float) -> LinkResponse:
        """Run a shell command on the host, to its end.

        :raises HostError: when it cannot be started, or does not end in time; it is ended then.
        :raises HostLost: when the host is lost meanwhile.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._request(RunCommand(command=command))
        except TimeoutError:
            raise HostError(f"host {self.host}: {command!r} did not end", waited_s=timeout_s) from None

    async def put(self, local: Path, remote: str, *, once: bool = False) -> None:
        """Copy a file of this machine to the host.

        :param once: the path on the host tells the content: nothing is sent if there is such a file.
        :raises HostError: naming the file.
        """
        await self._request(PutFile(local=str(local.absolute()), remote=remote, once=once))

    async def get(self, remote: str, local: Path) -> None:
        """Copy a file of the host to this machine.

        :raises HostError: naming the file.
        """
        await self._request(GetFile(remote=remote, local=str(local.absolute())))

    async def forward_remote(self, local: Path) -> str:
        """Forward a socket of the host to one of this machine, while the link is up; return its path on the host.

        :raises HostError: when the host's sshd refuses.
        """
        answer = await self._request(ForwardRemoteSocket(local=str(local)))
        assert answer.path is not None
        return answer.path

    async def forward_remote_port(self, port: int) -> int:
        """Forward a loopback port of the host to one of this machine, while the link is up; return the host's port.

        :raises HostError: when the host's sshd refuses.
        """
        answer = await self._request(ForwardRemotePort(port=port))
        assert answer.port is not None
        return answer.port

    async def forward_port(self, port: int) -> int:
        """Forward a loopback port of this machine to one of the host, while the link is up; return the local port.

        :raises HostError: when the host's sshd refuses.
        """
        answer = await self._request(ForwardLocalPort(port=port))
        assert answer.port is not None
        return answer.port

    def close(self, *, wait_s: float = 0.0) -> None:
        """Leave the link. Idempotent.

        :param wait_s: the time to wait for the link process to end, if this was its last client.
        """
        with self._connection, contextlib.suppress(OSError):
            # A process that was forked without Python's knowledge may hold the connection, too.
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(wait_s)
            while wait_s and self._connection.recv(4096):
                pass

    async def _request(self, request: LinkRequest) -> LinkResponse:
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self.agent_socket.with_name(LINK_SOCKET)), limit=LINE_BYTES
            )
        except OSError:
            raise self._lost() from None
        with contextlib.closing(writer):
            writer.write(msgspec.json.encode(request) + b"\n")
            line = await _line(reader)
        if not line:
            raise self._lost()
        answer = msgspec.json.decode(line, type=LinkResponse)
        if answer.fault:
            raise answer.fault.to_error()
        return answer

    def _lost(self) -> HostError:
        return self.loss() or HostError(
            f"host {self.host}: its link process refuses requests", hint="it is about to end"
        )


async def join_or_start(config: LinkConfig) -> JoinedLink:
    """Join the run's link to a host, and start it first if there is none.

    Any number of processes may do this at the same time: one link comes of it.

    :param config: its directory is made, below `link_base`.
    :raises HostError: when the host cannot be reached, or its agent does not start.
    """
    base = link_base()
    make_private_directory(base)
    rendezvous = Rendezvous(base, config.run)
    if joined := await _join(rendezvous, config.destination.name):
        return joined
    async with rendezvous.hold():
        if joined := await _join(rendezvous, config.destination.name):
            return joined
        remove_abandoned_links(base)
        await _start(config)
        path = Path(config.directory, LINK_SOCKET)
        rendezvous.name(path)
        if joined := await _join(rendezvous, config.destination.name):
            return joined
    raise HostError(f"host {config.destination.name}: its link process ended before it could be used")


def new_link_directory(run: str) -> Path:
    """Return a directory for a link; it is not made."""
    return link_base() / f"{run}-{secrets.token_hex(4)}"


async def _join(rendezvous: Rendezvous, host: str) -> JoinedLink | None:
    path = rendezvous.socket()
    if path is None:
        return None
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        ready = await _handshake(connection, path)
        require_same_version(host, remote=ready.version, local=version("pytest-propolis"))
    except (OSError, EOFError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return JoinedLink(host, connection, ready)


def require_same_version(host: str, *, remote: str, local: str) -> None:
    """
    :raises HostError: when an agent is of another version of this project, which has other messages.
    """
    if remote != local:
        raise HostError(
            f"host {host}: the agent of this run there is of pytest-propolis {remote}, and this process of {local}",
            hint="have all processes of a run use the same environment",
        )


async def _handshake(connection: socket.socket, path: Path) -> LinkReady:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, str(path))
    await loop.sock_sendall(connection, msgspec.json.encode(Join()) + b"\n")
    line = b""
    while not line.endswith(b"\n"):
        data = await loop.sock_recv(connection, 4096)
        if not data:
            raise EOFError
        line += data
    ready = msgspec.json.decode(line.splitlines()[0], type=LinkResponse).ready
    if ready is None:
        raise EOFError
    return ready


async def _start(config: LinkConfig) -> None:
    """Start a link process, and wait until it is connected; if this is cancelled, it is ended.

    :raises HostError: when it does not connect, with its reason.
    """
    directory = Path(config.directory)
    make_private_directory(directory)
    own_end, link_end = socket.socketpair()
    own_end.setblocking(False)
    with own_end:
        with link_end:
            process = spawn_helper(
                f"{__package__}.link",
                msgspec.json.encode(config).decode(),
                directory=directory,
                log_name=LOG_NAME,
                ready_fd=link_end.fileno(),
            )
        try:
            async with asyncio.timeout(config.start_timeout_s):
                line = await asyncio.get_running_loop().sock_recv(own_end, 1 << 16)
            _require_started(config, line)
        except BaseException as error:
            process.kill()
            process.wait()
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(error, TimeoutError):
                raise HostError(
                    f"host {config.destination.name}: no connection", waited_s=config.start_timeout_s
                ) from None
            raise
    _children.append(process)


def _require_started(config: LinkConfig, line: bytes) -> None:
    if not line:
        log = last_lines(Path(config.directory, LOG_NAME), LOG_LINES)
        text = "\n".join([f"host {config.destination.name}: the link process ended:", *(f"  | {said}" for said in log)])
        raise HostError(text)
    if fault := msgspec.json.decode(line, type=LinkStarted).fault:
        raise fault.to_error()


def remove_abandoned_links(base: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove the directories of link processes that were killed, and return them.

    :param dry_run: only return them.
    """
    removed = []
    for path in base.iterdir():
        try:
            if time.time() - path.stat().st_mtime < ABANDONED_S:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not dry_run:
                shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return removed


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ConnectionError:
        return b""
