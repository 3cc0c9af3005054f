"""Starting a host's agent: once per run, whoever comes first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.messages import LOG_NAME, AgentConfig, AgentReady
from ..errors import AgentError, HostError, ResourceExhausted
from ..ledger.rendezvous import Rendezvous
from .lifeline import AgentNotRunning, Lifeline
from .run_directory import make_private_directory

__all__ = ["Launched", "connect_or_launch"]

START_TIMEOUT_S: Final = 30.0
SOCKET_PATH_LIMIT: Final = 107
LONGEST_SOCKET: Final = Path("vms", "0" * 16, "migration.sock")
"""The socket with the longest path that an agent makes in its directory."""

_children: Final[list[subprocess.Popen[bytes]]] = []
"""Agents that this process started: kept, because they may outlive whoever needed them, and are not warned about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A running agent, and our lifeline to it.

    :param process: the agent, if this process started it.
    """

    socket: Path
    lifeline: Lifeline
    process: subprocess.Popen[bytes] | None = None

    def wait_until_left(self, timeout_s: float) -> bool:
        """Wait for the end of an agent whose last client has left. False where it was started elsewhere, or stays."""
        if self.process is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        return self.process.returncode is not None


async def connect_or_launch(config: AgentConfig, *, client: str) -> Launched:
    """Open a lifeline to the run's agent, and start the agent first if there is none.

    Any number of processes may do this at the same time: one agent comes of it.

    :raises AgentError: when the agent does not start; with the end of its log.
    :raises HostError: when its directory cannot be had.
    """
    directory = Path(config.directory)
    make_private_directory(directory.parent)
    rendezvous = Rendezvous(directory.parent, config.run)
    if launched := await _connect(rendezvous, client):
        return launched
    async with _place_errors(directory.parent), rendezvous.hold():
        if launched := await _connect(rendezvous, client):
            return launched
        _require_short(directory / LONGEST_SOCKET)
        async with _starting(config) as child:
            ready = Path((await _launch(config, child)).socket)
            lifeline = await Lifeline.open(ready, client=client)
            try:
                rendezvous.name(ready)
            except BaseException:
                lifeline.close()
                raise
        return Launched(socket=ready, lifeline=lifeline, process=child.process)


@contextlib.asynccontextmanager
async def _starting(config: AgentConfig) -> AsyncIterator[_Child]:
    """A directory for an agent, and the agent in it; nothing is left of them if the block fails or is cancelled."""
    directory = Path(config.directory)
    make_private_directory(directory)
    child = _Child()
    try:
        try:
            yield child
        except AgentNotRunning:
            raise _start_failed(config, "left before it could be used") from None
    except BaseException:
        if child.process is not None:
            # It owns nothing yet: nobody could ask it for anything.
            child.process.kill()
            child.process.wait()
        shutil.rmtree(directory, ignore_errors=True)
        raise
    assert child.process is not None
    _children.append(child.process)


@contextlib.asynccontextmanager
async def _place_errors(base: Path) -> AsyncIterator[None]:
    """Turn what the operating system says of the place for run directories into an error that names the place."""
    try:
        yield
    except OSError as error:
        kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else HostError
        hint = "free some space there, or set XDG_RUNTIME_DIR to another directory of your own"
        raise kind(f"{base} cannot be used: {error.strerror}", hint=hint) from None


def _require_short(socket_path: Path) -> None:
    if len(os.fsencode(socket_path)) > SOCKET_PATH_LIMIT:
        raise HostError(
            f"{socket_path} is too long a path for a socket: {SOCKET_PATH_LIMIT} bytes are the most",
            hint="set XDG_RUNTIME_DIR to a directory of your own with a shorter path",
        )


async def _connect(rendezvous: Rendezvous, client: str) -> Launched | None:
    socket_path = rendezvous.socket()
    if socket_path is not None:
        with contextlib.suppress(AgentNotRunning):
            return Launched(socket=socket_path, lifeline=await Lifeline.open(socket_path, client=client))
    return None


@dataclass(slots=True)
class _Child:
    """An agent that is being started."""

    process: subprocess.Popen[bytes] | None = None


async def _launch(config: AgentConfig, child: _Child) -> AgentReady:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            child.process = _start(config, theirs.fileno())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await asyncio.get_running_loop().sock_recv(ours, 4096)
        except TimeoutError:
            raise _start_failed(config, f"did not come up in {START_TIMEOUT_S:.0f} s") from None
    if not line:
        raise _start_failed(config, "ended while it started")
    return msgspec.json.decode(line, type=AgentReady)


def _start(config: AgentConfig, ready_fd: int) -> subprocess.Popen[bytes]:
    """Start the agent. It outlives this event loop, which would end a subprocess of asyncio's own."""
    log = os.open(Path(config.directory) / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_propolis.agent", msgspec.json.encode(config).decode(), str(ready_fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[ready_fd],
            # Its own session: Ctrl-C on the terminal must not reach it, nor the VMs.
            start_new_session=True,
            cwd="/",
        )
    finally:
        os.close(log)


def _start_failed(config: AgentConfig, how: str) -> AgentError:
    log = Path(config.directory) / LOG_NAME
    tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
    return AgentError(
        "\n".join([f"the agent {how}; the end of its log:", *(f"  | {line}" for line in tail)]),
        hint="`propolis doctor` says what this machine lacks",
    )
