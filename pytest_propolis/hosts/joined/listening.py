"""The run's side of its listener: starts the process, and ends it with the run."""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import msgspec

from ...errors import HostError
from ...operating_system.python_processes import spawn_helper
from ...propolis_api.connection.sockets import socket_pair
from ...storage.files import last_lines
from ..run_directory import make_private_directory
from ..ssh.link_client import link_base
from .messages import LISTENER_VARIABLE, ListenConfig, ListenStarted

__all__ = ["RunListener"]

START_TIMEOUT_S: Final = 30.0
END_TIMEOUT_S: Final = 50.0
LOG_NAME: Final = "listener.log"
SOCKET_NAME: Final = "listener.sock"
LOG_LINES: Final = 15


class RunListener:
    """A run's listener, until `close`.

    Meanwhile the environment of this process, and of those that it starts, names it.

    :param address: where it listens.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], lifeline: socket.socket, started: ListenStarted, *, config: ListenConfig
    ) -> None:
        self._process = process
        self._lifeline = lifeline
        self._started = started
        self._config = config
        os.environ[LISTENER_VARIABLE] = str(Path(config.directory, SOCKET_NAME))

    @classmethod
    def start(cls, address: str, port: int, *, hosts: Mapping[str, float]) -> Self:
        """Listen for machines.

        :param port: 0 for a free one.
        :param hosts: by name, for how long the run waits for each, in seconds.
        :raises HostError: when nothing can listen there.
        """
        directory = link_base() / f"join-{secrets.token_hex(4)}"
        make_private_directory(directory.parent)
        make_private_directory(directory)
        config = ListenConfig(address=address, port=port, hosts=dict(hosts), directory=str(directory))
        own_end, listener_end = socket_pair()
        with listener_end:
            process = spawn_helper(
                f"{__package__}.listener",
                msgspec.json.encode(config).decode(),
                directory=directory,
                log_name=LOG_NAME,
                ready_fd=listener_end.fileno(),
            )
        try:
            started = _started(own_end, directory)
        except BaseException:
            own_end.close()
            process.kill()
            process.wait()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return cls(process, own_end, started, config=config)

    @property
    def commands(self) -> dict[str, str]:
        """By host, the command by which a machine joins the run as this host."""
        address = socket.gethostname() if _is_any(self._config.address) else self._config.address
        place = f"[{address}]:{self._started.port}" if ":" in address else f"{address}:{self._started.port}"
        return {
            name: f"propolis join {place} --token {self._started.token} --name {name}" for name in self._config.hosts
        }

    def close(self) -> None:
        """End it, when the links have ended: machines that have joined leave. Idempotent."""
        os.environ.pop(LISTENER_VARIABLE, None)
        self._lifeline.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self._config.directory, ignore_errors=True)


def _started(own_end: socket.socket, directory: Path) -> ListenStarted:
    own_end.settimeout(START_TIMEOUT_S)
    try:
        line = own_end.recv(1 << 16)
    except TimeoutError:
        raise HostError("the run's listener did not start", waited_s=START_TIMEOUT_S) from None
    if not line:
        log = last_lines(directory / LOG_NAME, LOG_LINES)
        raise HostError("\n".join(["the run's listener ended while it started:", *(f"  | {text}" for text in log)]))
    started = msgspec.json.decode(line, type=ListenStarted)
    if started.fault:
        raise started.fault.to_error()
    return started


def _is_any(address: str) -> bool:
    """Return whether an address stands for all of the machine, so that nothing can connect to it."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:  # a name
        return False
