"""A connection to a host, made by any program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import msgspec

from ....errors import HostError

__all__ = [
    "SSH_LABEL",
    "SSH_REMEDY",
    "Channel",
    "SshDestination",
    "Transport",
    "remote_port_refused",
    "remote_socket_refused",
]

SSH_LABEL: Final = "the SSH connection"
SSH_REMEDY: Final = "`ssh {host}` tells whether the host can be reached"


class SshDestination(msgspec.Struct, frozen=True, kw_only=True, tag="ssh"):
    """A host's destination, in terms of the user's SSH configuration.

    :param name: the host's name in errors.
    :param address: a host name or an alias of the configuration, with ``USER@`` before it or not.
    :param config: files of the configuration, the first word counts; the user's and the system's if empty.
    """

    name: str
    address: str
    config: tuple[str, ...] = ()

    @property
    def config_files(self) -> list[str]:
        """The existing configuration files."""
        files = self.config or (str(Path("~/.ssh/config").expanduser()), "/etc/ssh/ssh_config")
        return [file for file in files if Path(file).exists()]


@dataclass(frozen=True, slots=True)
class Channel:
    """A command that runs on the host.

    Its streams behave as those of asyncio; what they raise when the connection is lost is in `Transport.errors`.

    :param status: waits for the command's end, and returns its status; negative for a signal.
    :param kill: ends the command, and does not wait for that.
    """

    stdin: Any
    stdout: Any
    stderr: Any
    status: Callable[[], Awaitable[int]]
    kill: Callable[[], None]


class Transport(Protocol):
    """An open connection.

    :cvar errors: what its channels raise when it is lost.
    :cvar label: what it is, in messages.
    :cvar remedy: what a user can do when it is lost; ``{host}`` is the host's name.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    label: ClassVar[str]
    remedy: ClassVar[str]

    async def start(self, command: str) -> Channel:
        """Start a shell command on the host."""

    async def forward(self, local: Path, remote: str) -> None:
        """Forward a local socket to a socket of the host.

        :raises HostError: when that is refused.
        """

    async def forward_remote(self, remote: str, local: Path) -> None:
        """Forward a socket of the host to a local one.

        :raises HostError: when that is refused.
        """

    async def forward_port(self, remote: int) -> int:
        """Forward a port of this machine's loopback interface to one of the host's.

        :return: the local port.
        :raises HostError: when that is refused.
        """

    async def forward_remote_port(self, local: int) -> int:
        """Forward a port of the host's loopback interface to one of this machine's.

        :return: the host's port.
        :raises HostError: when that is refused.
        """

    async def wait_closed(self) -> None:
        """Wait until the connection has ended. One of `errors` is raised if it is known why."""

    def abort(self) -> None:
        """End the connection at once."""


def remote_socket_refused(host: str, reason: str) -> HostError:
    """Return the error for a host whose sshd does not listen on a socket for this machine."""
    return HostError(
        f"host {host}: its sshd refuses to listen on a socket there: {reason}",
        hint="AllowStreamLocalForwarding must be yes in its sshd_config, for what goes from host to host",
    )


def remote_port_refused(host: str, reason: str) -> HostError:
    """Return the error for a host whose sshd does not listen on a port for this machine."""
    return HostError(
        f"host {host}: its sshd refuses to listen on a port there: {reason}",
        hint="AllowTcpForwarding must be yes in its sshd_config, for what goes from host to host",
    )
