"""Start a host's agent: once per run, from the first process that needs it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.agent_process import LOG_NAME, AgentConfig, AgentReady
from ..errors import AgentError, HostError, ResourceExhausted
from ..ledger.identity import ProcessIdentity
from ..ledger.rendezvous import Rendezvous
from ..operating_system.no_space import is_no_space
from ..operating_system.python_processes import original_popen, python_command, untraced
from ..operating_system.registry import system
from ..propolis_api.connection.sockets import socket_pair
from ..storage.files import last_lines
from .known_directories import note_base_directory
from .lifeline import AgentNotRunning, Lifeline
from .run_directory import make_private_directory

__all__ = ["Launched", "connect_or_launch"]

START_TIMEOUT_S: Final = 30.0
SOCKET_PATH_LIMIT: Final = 107
LONGEST_SOCKET: Final = Path("vms", "0" * 16, "migration.sock")
"""The socket with the longest path that an agent creates in its directory."""

KILL_TIMEOUT_S: Final = 10.0


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A running agent, and this process's lifeline to it.

    :param agent: the agent's process, if this process started it.
    """

    socket: Path
    lifeline: Lifeline
    agent: ProcessIdentity | None = None

    def wait_until_left(self, timeout_s: float) -> bool:
        """Wait for an agent without clients to exit. Return False if it was started elsewhere, or does not exit."""
        return self.agent is not None and self.agent.wait_gone(timeout_s)


async def connect_or_launch(
    config: AgentConfig,
    *,
    client: str,
    linger_s: float = 0.0,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Launched:
    """Open a lifeline to the run's agent; start the agent first if there is none.

    Any number of processes may do this concurrently: only one starts an agent.

    :param linger_s: how long an agent that lingers is to stay after its last client.
    :param environment: that of an agent that is started; by default this process's.
    :param meanwhile: called while an agent starts: with two processors, what it imports takes no time of its own.
    :raises AgentError: if the agent does not start, with the end of its log.
    :raises HostError: if its directory cannot be created.
    :raises CapabilityMissing: if this is no operating system on which agents run, or files cannot be locked.
    """
    directory = Path(config.directory)
    make_private_directory(directory.parent)
    system().host.require_file_locks(directory.parent)
    note_base_directory(directory.parent)
    rendezvous = Rendezvous(directory.parent, config.run)
    if launched := await _connect(rendezvous, client, linger_s):
        return launched
    async with _place_errors(directory.parent), rendezvous.hold():
        if launched := await _connect(rendezvous, client, linger_s):
            return launched
        _require_short(directory / LONGEST_SOCKET)
        async with _starting(config, os.environ if environment is None else environment) as child:
            if meanwhile:
                meanwhile()
            socket_path = await child.ready()
            lifeline = await Lifeline.open(socket_path, client=client, linger_s=linger_s)
            try:
                rendezvous.name(socket_path)
            except BaseException:
                lifeline.close()
                raise
        return Launched(socket=socket_path, lifeline=lifeline, agent=child.agent)


LOG_LINES: Final = 15
SPACE_HINT: Final = "free some space there, or set XDG_RUNTIME_DIR to another directory of your own"


@contextlib.asynccontextmanager
async def _starting(config: AgentConfig, environment: Mapping[str, str]) -> AsyncIterator[_Child]:
    """Create a directory and start an agent in it; clean up both if the block fails or is cancelled."""
    directory = Path(config.directory)
    make_private_directory(directory)
    try:
        with _Child.started(config, environment) as child:
            try:
                yield child
            except AgentNotRunning:
                raise _start_failed(config, "left before it could be used") from None
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextlib.asynccontextmanager
async def _place_errors(base: Path) -> AsyncIterator[None]:
    """Convert an `OSError` about the base directory into an error that names the directory."""
    try:
        yield
    except OSError as error:
        kind = ResourceExhausted if is_no_space(error) else HostError
        raise kind(f"{base} cannot be used: {error.strerror}", hint=SPACE_HINT) from None


def _require_short(socket_path: Path) -> None:
    if len(os.fsencode(socket_path)) > SOCKET_PATH_LIMIT:
        raise HostError(
            f"{socket_path} is too long a path for a socket: {SOCKET_PATH_LIMIT} bytes are the most",
            hint="set XDG_RUNTIME_DIR to a directory of your own with a shorter path",
        )


async def _connect(rendezvous: Rendezvous, client: str, linger_s: float) -> Launched | None:
    socket_path = rendezvous.socket()
    if socket_path is not None:
        with contextlib.suppress(AgentNotRunning):
            lifeline = await Lifeline.open(socket_path, client=client, linger_s=linger_s)
            return Launched(socket=socket_path, lifeline=lifeline)
    return None


class _Child(msgspec.Struct):
    """An agent that is starting.

    :param launcher: the process that forks the agent and exits at once; it leads the agent's process group.
    :param ready_socket: the socket on which the agent, and no other process, reports that it is ready.
    :param agent: the agent's own process, once it is ready.
    """

    config: AgentConfig
    launcher: subprocess.Popen[bytes]
    ready_socket: socket.socket
    agent: ProcessIdentity | None = None

    @classmethod
    @contextlib.contextmanager
    def started(cls, config: AgentConfig, environment: Mapping[str, str]) -> Iterator[_Child]:
        """Start an agent, and kill it if the block fails or is cancelled."""
        own_end, agent_end = socket_pair()
        with own_end:
            with agent_end:
                child = cls(config, _start(config, agent_end.fileno(), environment), own_end)
            try:
                yield child
            except BaseException:
                child._kill()
                raise
            finally:
                child.launcher.wait()

    async def ready(self) -> Path:
        """Wait until the agent is listening, and return its socket.

        :raises AgentError: if it exits first, or takes too long.
        :raises AgentNotRunning: if it exits immediately afterwards.
        """
        self.ready_socket.setblocking(False)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await asyncio.get_running_loop().sock_recv(self.ready_socket, 4096)
        except TimeoutError:
            raise _start_failed(self.config, f"did not come up in {START_TIMEOUT_S:.0f} s") from None
        if not line:
            raise _start_failed(self.config, "ended while it started")
        ready = msgspec.json.decode(line, type=AgentReady)
        try:
            self.agent = ProcessIdentity.of(ready.pid)
        except ProcessLookupError:
            raise AgentNotRunning from None
        return Path(ready.socket)

    def _kill(self) -> None:
        """Kill the agent, which owns nothing yet: no client could ask it for anything."""
        # The launcher has not been reaped yet, so its process group id cannot have been reused.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.launcher.pid, signal.SIGKILL)
        if self.agent:
            self.agent.wait_gone(KILL_TIMEOUT_S)
        self.ready_socket.settimeout(KILL_TIMEOUT_S)  # its other end closes with a process that has not written to it
        with contextlib.suppress(OSError):
            while self.ready_socket.recv(4096):
                pass


def _start(config: AgentConfig, ready_fd: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the agent. It outlives this event loop, which would kill a subprocess of asyncio's."""
    arguments = [msgspec.json.encode(config).decode(), str(ready_fd)]
    log = os.open(Path(config.directory) / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return original_popen()(
            python_command("pytest_propolis.agent", *arguments, detached=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[ready_fd],
            # Its own session: Ctrl-C on the terminal must reach neither it nor the VMs.
            start_new_session=True,
            cwd="/",
            env=untraced(environment),
        )
    finally:
        os.close(log)


def _start_failed(config: AgentConfig, how: str) -> AgentError | ResourceExhausted:
    base = Path(config.directory).parent
    space = os.statvfs(base)
    if not (space.f_bavail and space.f_favail):  # then there is no log either
        return ResourceExhausted(f"{base} cannot be used: {os.strerror(errno.ENOSPC)}", hint=SPACE_HINT)
    log = Path(config.directory) / LOG_NAME
    tail = last_lines(log, LOG_LINES)
    return AgentError(
        "\n".join([f"the agent {how}; the end of its log:", *(f"  | {line}" for line in tail)]),
        hint="`propolis doctor` says what this machine lacks",
    )
