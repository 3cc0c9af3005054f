"""A connection made by asyncssh, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from pathlib import Path
from typing import Any, ClassVar, Final

import asyncssh

from ....errors import HostError
from .transport import SSH_LABEL, SSH_REMEDY, Channel, SshDestination, remote_port_refused, remote_socket_refused

__all__ = ["FALLBACK_ERRORS", "AsyncsshTransport", "describe"]

FALLBACK_ERRORS: Final = (
    asyncssh.HostKeyNotVerifiable,
    asyncssh.PermissionDenied,
    asyncssh.ConfigParseError,
    asyncssh.KeyImportError,
    FileNotFoundError,
)
"""What asyncssh raises when it does not support the user's configuration, but OpenSSH may."""

FAST_FIRST: Final = (
    "aes128-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-gcm@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)
"""asyncssh's fastest cipher, and others for hosts that lack it."""

CONNECT_TIMEOUT_S: Final = 15
LOOPBACK: Final = "127.0.0.1"
QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)

logging.getLogger("asyncssh").setLevel(logging.WARNING)


class AsyncsshTransport:
    """An open connection. It belongs to the event loop that it was made in."""

    errors: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError, asyncssh.Error)
    label: ClassVar[str] = SSH_LABEL
    remedy: ClassVar[str] = SSH_REMEDY

    def __init__(self, connection: asyncssh.SSHClientConnection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._listeners: list[asyncssh.SSHListener] = []

    @classmethod
    async def connect(cls, destination: SshDestination) -> AsyncsshTransport:
        """
        :raises OSError: when the host cannot be reached.
        :raises asyncssh.Error: when it refuses, or is not trusted.
        """
        user, _, address = destination.address.rpartition("@")
        chosen: dict[str, Any] = {
            "config": destination.config_files,
            "agent_forwarding": False,  # hosts have no use for the user's keys
            "x11_forwarding": False,
            **({"username": user} if user else {}),
        }
        options = await asyncssh.SSHClientConnectionOptions.construct(host=address, **chosen)
        if not options.config.get("Ciphers"):
            chosen["encryption_algs"] = FAST_FIRST
        if not options.config.get("ConnectTimeout"):
            chosen["connect_timeout"] = CONNECT_TIMEOUT_S
        connection = await asyncssh.connect(address, **chosen)
        _acknowledge_at_once(connection)
        return cls(connection, destination.name)

    async def start(self, command: str) -> Channel:
        try:
            process = await self._connection.create_process(command, encoding=None)
        except (asyncssh.ChannelOpenError, asyncssh.DisconnectError) as error:
            raise HostError(f"host {self._name}: SSH refuses to run a command: {error}") from None

        async def status() -> int:
            await process.wait()
            code = process.returncode
            return code if code is not None else -signal.SIGHUP

        def kill() -> None:
            with contextlib.suppress(OSError):  # it has ended
                process.kill()
            process.close()

        return Channel(process.stdin, process.stdout, process.stderr, status, kill)

    async def forward(self, local: Path, remote: str) -> None:
        self._listeners.append(await self._connection.forward_local_path(str(local), remote))

    async def forward_remote(self, remote: str, local: Path) -> None:
        try:
            self._listeners.append(await self._connection.forward_remote_path(remote, str(local)))
        except asyncssh.ChannelListenError as error:
            raise remote_socket_refused(self._name, str(error)) from None

    async def forward_port(self, remote: int) -> int:
        listener = await self._connection.forward_local_port(LOOPBACK, 0, LOOPBACK, remote)
        self._listeners.append(listener)
        return int(listener.get_port())

    async def forward_remote_port(self, local: int) -> int:
        try:
            listener = await self._connection.forward_remote_port(LOOPBACK, 0, LOOPBACK, local)
        except asyncssh.ChannelListenError as error:
            raise remote_port_refused(self._name, str(error)) from None
        self._listeners.append(listener)
        return int(listener.get_port())

    async def wait_closed(self) -> None:
        await self._connection.wait_closed()

    def abort(self) -> None:
        for listener in self._listeners:
            listener.close()
        with contextlib.suppress(OSError):
            self._connection.abort()


def _acknowledge_at_once(connection: Any) -> None:
    """Keep the kernel from delaying acknowledgements: sshd sends the second part of an answer only after one."""
    sock = connection.get_extra_info("socket")
    if sock is None or QUICKACK is None:  # a ProxyCommand has the TCP connection
        return
    receive = connection.data_received

    def data_received(data: bytes, datatype: int | None = None) -> None:
        with contextlib.suppress(OSError):
            # The kernel forgets it: it is to be set after every receive.
            sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        receive(data, datatype)

    connection.data_received = data_received


def describe(error: BaseException) -> str:
    """Return the reason of a failed connection; asyncio's time-outs have no text."""
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__
