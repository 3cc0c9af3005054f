"""Messages between clients and the link process: one JSON object per line."""

from __future__ import annotations

from typing import Final

import msgspec

from ...agent_api.agent_process import AgentOptions
from ...agent_api.messages import Fault
from ..joined.messages import JoinDestination
from .bootstrap import HostFacts
from .transport.transport import SshDestination

__all__ = [
    "AGENT_SOCKET",
    "LINK_SOCKET",
    "ForwardLocalPort",
    "ForwardRemotePort",
    "ForwardRemoteSocket",
    "GetFile",
    "Join",
    "LinkConfig",
    "LinkReady",
    "LinkRequest",
    "LinkResponse",
    "LinkStarted",
    "PutFile",
    "RunCommand",
]

LINK_SOCKET: Final = "link.sock"
"""The name of the socket for requests, in the link's directory."""

AGENT_SOCKET: Final = "agent.sock"
"""The name of the forwarded socket of the host's agent, in the link's directory."""


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a link process.

    :param run: the id of the run on the host.
    :param directory: the link's own, on this machine.
    :param bundle_cache: where bundles are kept, on this machine.
    :param python: the command of the host's Python.
    :param qemu: the host's QEMU program; found on its PATH if None.
    :param artifact_dir: the host's store of images; the cache of its user if None.
    :param silence_s: how long the host may be silent before the link gives up. The host waits longer by
        `host_silence_margin_s`, so that no test uses a VM that is about to be removed.
    :param grace_s: how long the host's agent may take for an orderly exit.
    :param start_timeout_s: how long the link may take until its agent answers.
    """

    destination: SshDestination | JoinDestination
    run: str
    directory: str
    bundle_cache: str
    python: str = "python3"
    options: AgentOptions = AgentOptions()
    qemu: str | None = None
    artifact_dir: str | None = None
    silence_s: float = 4.0
    host_silence_margin_s: float = 3.0
    grace_s: float = 2.0
    start_timeout_s: float = 120.0


class LinkReady(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a client that has joined.

    :param socket: the local socket that is forwarded to the host's agent.
    :param agent_socket: the agent's own socket, on the host.
    :param version: of this project, as the agent runs it.
    :param remedy: what a user can do when the host is lost.
    """

    socket: str
    agent_socket: str
    version: str
    facts: HostFacts
    remedy: str


class LinkStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The link's report to the process that started it: that it is ready, or why it is not."""

    fault: Fault | None = None


class Join(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Join as a client until this connection ends. Answered by `LinkReady`."""


class RunCommand(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run a shell command on the host."""

    command: str


class PutFile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Copy a file of this machine to the host.

    :param once: the path on the host tells the content: nothing is sent if there is such a file.
    """

    local: str
    remote: str
    once: bool = False


class GetFile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Copy a file of the host to this machine."""

    remote: str
    local: str


class ForwardRemoteSocket(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Forward a socket on the host to one of this machine, while the link is up. Answered by the socket's path
    on the host."""

    local: str


class ForwardRemotePort(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Forward a port of the host's loopback interface to one of this machine's, while the link is up. Answered by
    the port of the host's loopback interface."""

    port: int


class ForwardLocalPort(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Forward a port of this machine's loopback interface to one of the host's. Answered by that port."""

    port: int


LinkRequest = Join | RunCommand | PutFile | GetFile | ForwardRemoteSocket | ForwardRemotePort | ForwardLocalPort


class LinkResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of a request.

    :param lost: the connection to the host is lost, and why; nothing follows.
    """

    ready: LinkReady | None = None
    fault: Fault | None = None
    lost: str | None = None
    status: int | None = None
    path: str | None = None
    port: int | None = None
    output: bytes = b""
    stderr: bytes = b""
