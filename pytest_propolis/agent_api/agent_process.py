"""The process of an agent: its configuration, files, headers of requests, and how long it stays."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = [
    "CLIENT_HEADER",
    "LINGER_HEADER",
    "LOG_NAME",
    "PID_HEADER",
    "SERVER_LINE",
    "SOCKET_NAME",
    "AgentConfig",
    "AgentOptions",
    "AgentReady",
    "LingerListed",
]

SOCKET_NAME: Final = "agent.sock"
"""Where in a run directory its agent listens."""

LOG_NAME: Final = "agent.log"
"""Where in a run directory its agent writes what it does."""

SERVER_LINE: Final = "[propolis] "
"""Begins the lines of a VM's server in the log that it shares with QEMU, which has printed the others."""

CLIENT_HEADER: Final = "x-propolis-client"
"""Every request of a client names it: what it creates is released when its lifeline breaks."""

PID_HEADER: Final = "x-propolis-pid"
"""The process id of a client, given with its lifeline; 0 for a client on another host."""

LINGER_HEADER: Final = "x-propolis-linger"
"""How many seconds a client wants the agent to stay after its last client has left, given with its lifeline."""


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a run that each of its agents needs: fields of `Settings`, by their names there.

    :param accelerator: ``auto``, ``kvm`` or ``tcg``.
    :param standby: how many forks of each kind stand by; ``auto`` for as many as are good for the machine.
    """

    accelerator: str = "auto"
    standby: int | Literal["auto"] = "auto"


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of an agent.

    :param run: an unguessable id: all that belongs to this run carries it.
    :param directory: the agent's own directory, mode 0700, existing.
    :param artifact_dir: the store of images; the user's cache if None.
    :param peer_stores: stores on the same machine: what is complete there is linked or copied rather than fetched or
        made again.
    :param qemu: the QEMU program; found on PATH if None.
    :param disk_dir: where the disks lie that VMs write to; with the images if None.
    :param image_dirs: where files may lie that disk images name, beside the images' own directories.
    :param lingers: whether it stays after its last client, for as long as that one asked for.
    """

    run: str
    directory: str
    artifact_dir: str | None = None
    peer_stores: tuple[str, ...] = ()
    qemu: str | None = None
    options: AgentOptions = AgentOptions()
    disk_dir: str | None = None
    image_dirs: tuple[str, ...] = ()
    lingers: bool = False


class AgentReady(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's report to its launcher, once it listens."""

    pid: int
    socket: str


class LingerListed(msgspec.Struct, frozen=True, kw_only=True):
    """The time for which an agent lingers after its last client.

    :param seconds: as its latest client requested; 0 if it exits with its last client.
    :param until: when it exits, Unix time in seconds; None while it has clients.
    """

    seconds: float
    until: float | None = None
