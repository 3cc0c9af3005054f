"""Messages between clients and the agent beside the Propolis API: bodies of the agent's own paths."""

from __future__ import annotations

import secrets
from typing import TypeAlias

import msgspec

from ..errors import AgentError, PropolisError
from .boot_source import BootSource
from .retention import Kept
from .server_program import ServerProgram
from .templates import TemplateMaking
from .volumes import VolumeListed

__all__ = [
    "AcceptPeer",
    "AgentInfo",
    "ConnectPeer",
    "CreateVm",
    "Departed",
    "DerivedAdopted",
    "ExtendedInfo",
    "Fault",
    "FetchFile",
    "FileDigest",
    "FileFetched",
    "FileFound",
    "FindFile",
    "ImagesFetched",
    "Keep",
    "KeptDisk",
    "KeptListed",
    "PeerAccepted",
    "PeerConnected",
    "ProgressMade",
    "ResourceIds",
    "SendFile",
    "StreamLine",
    "TemplateFound",
    "VmCreated",
    "VmListed",
    "WorkFailed",
    "new_client",
    "run_of_client",
]


def new_client(run: str) -> str:
    """Return an id for a client that is a process of a run."""
    return f"{run}.{secrets.token_hex(8)}"


def run_of_client(client: str) -> str:
    """Return the id of the run that a client of `new_client` belongs to."""
    return client.partition(".")[0]


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about an agent."""

    pid: int
    run: str
    version: str
    qemu: str
    qemu_version: str
    accelerator: str
    accelerator_reason: str
    standing_by: int = 0


class CreateVm(msgspec.Struct, frozen=True, kw_only=True):
    """Request a Propolis server.

    :param name: for users.
    :param group: what the VM belongs to (a test's node id): names are unique in it.
    :param boot: what its VM starts from.
    :param log_path: where QEMU's own messages go; if empty, into the VM's directory.
    :param display: whether its VM has a display.
    :param guest_ports: whether its VM has guest ports, each a websocket below ``/ports/`` of the VM.
    :param memory_mib: what it will need of the host's memory, in MiB; 0 if that is not to be looked at.
    :param copy_disks: whether a VM that migrates in gets disks of its own, also where it could use the source's.
    :param predecessor: the id of the VM whose place it takes: it finds that one's firmware variables when it boots.
    :param program: the program that is to serve it, as a process of its own; None for the engine in the agent.
    :param qcow2_disks: paths of the VM's disks that are qcow2 files, which not every program reads.
    :param downstairs: the addresses of the downstairs of its replicated disks.
    :param metric_addr: the IP address and port at which its server registers for metrics; None for no metrics.
    """

    name: str
    group: str
    boot: BootSource
    log_path: str
    display: bool = False
    guest_ports: bool = False
    copy_disks: bool = False
    memory_mib: int = 0
    predecessor: str | None = None
    program: ServerProgram | None = None
    qcow2_disks: tuple[str, ...] = ()
    downstairs: tuple[str, ...] = ()
    metric_addr: str | None = None


class VmCreated(msgspec.Struct, frozen=True, kw_only=True):
    """A Propolis server was created: its API is below `path`.

    :param port: on the host's loopback interface, if the server is a separate process; its API is only there.
    """

    id: str
    path: str
    port: int | None = None


class VmListed(msgspec.Struct, frozen=True, kw_only=True):
    """One VM in the agent's account."""

    id: str
    name: str
    group: str
    client: str
    state: str | None
    pid: int | None
    since: float
    kept: Kept | None = None
    port: int | None = None


class ExtendedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a VM beyond the Propolis API.

    :param display_socket: the UNIX socket of its display's VNC server; None without a display or while it is down.
    :param panics: how often its guest reported a panic through the pvpanic device.
    :param failure: why it could not go on, where its disks are the reason.
    """

    display_socket: str | None
    panics: int
    failure: str | None = None


class ResourceIds(msgspec.Struct, frozen=True, kw_only=True):
    """Some of what a client owns, by id.

    :param named: VMs by group and name, for callers that do not know the id.
    """

    vms: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the agent to take VMs, disks and networks over from a client: they stay when the client leaves.

    :param resources: which; what is gone already is passed over.
    :param reason: for users.
    :param ttl_s: after so many seconds the agent removes them.
    """

    resources: ResourceIds
    reason: str
    ttl_s: float


class Departed(msgspec.Struct, frozen=True, kw_only=True):
    """All that a client owned is released.

    :param agent_stays: whether there are other clients, or things that are kept.
    """

    agent_stays: bool


class KeptDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that is kept."""

    id: str
    path: str


class KeptListed(msgspec.Struct, frozen=True, kw_only=True):
    """The resources kept by one request. Its disks are removed when its VMs have ended."""

    id: str
    kept: Kept
    vms: tuple[VmListed, ...]
    disks: tuple[KeptDisk, ...]
    volumes: tuple[VolumeListed, ...] = ()


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way from the agent to a client, where it becomes the same error again."""

    kind: str
    message: str
    hint: str | None = None
    console_tail: tuple[str, ...] = ()
    log_path: str | None = None
    waited_s: float | None = None

    @classmethod
    def of(cls, error: PropolisError) -> Fault:
        return cls(
            kind=type(error).__name__,
            message=error.message,
            hint=error.hint,
            console_tail=error.console_tail,
            log_path=error.log_path,
            waited_s=error.waited_s,
        )

    def to_error(self) -> PropolisError:
        kind = PropolisError.kinds.get(self.kind, AgentError)
        return kind(
            self.message,
            hint=self.hint,
            console_tail=self.console_tail,
            log_path=self.log_path,
            waited_s=self.waited_s,
        )


class ProgressMade(msgspec.Struct, frozen=True, tag=True):
    """What work has come to, for users."""

    text: str


class ImagesFetched(msgspec.Struct, frozen=True, tag=True):
    """The end of a request for images: their paths on the agent's host."""

    paths: tuple[str, ...]


class TemplateFound(msgspec.Struct, frozen=True, tag=True):
    """The end of a request for a template."""

    key: str


class FindFile(msgspec.Struct, frozen=True, kw_only=True):
    """Ask whether a host has a file whose path identifies its content. It counts as used then."""

    path: str
    size: int


class FileFound(msgspec.Struct, frozen=True, kw_only=True):
    """Whether it has it."""

    is_there: bool


class SendFile(msgspec.Struct, frozen=True, kw_only=True):
    """Ask another agent for a file of its host, from an offset on. The answer consists of frames (`file_stream`)."""

    path: str
    size: int
    start: int


class FetchFile(msgspec.Struct, frozen=True, kw_only=True):
    """Ask an agent to fetch a file from another agent. The answer is a stream of `StreamLine`.

    It does not end before the agent has been told the file's digest (`FileDigest`).

    :param id: a unique one of this request.
    :param path: where it should be; the path identifies its content.
    :param mode: the permissions that it should have.
    :param source: the address of the other agent, as this one reaches it.
    :param source_path: where the other host has it.
    """

    id: str
    path: str
    size: int
    mode: int
    source: str
    source_path: str


class FileDigest(msgspec.Struct, frozen=True, kw_only=True):
    """Tell an agent what `file_stream.digest` should return for a file that is being fetched, or soon will be.

    :param id: that of `FetchFile`.
    """

    id: str
    digest: str


class DerivedAdopted(msgspec.Struct, frozen=True, tag=True):
    """The end of a request to make a template or an image of fetched files."""


class FileFetched(msgspec.Struct, frozen=True, tag=True):
    """The end of a request to fetch a file."""


class WorkFailed(msgspec.Struct, frozen=True, tag=True):
    """The end of a request that has failed."""

    fault: Fault


StreamLine: TypeAlias = (
    ProgressMade | TemplateMaking | ImagesFetched | TemplateFound | DerivedAdopted | FileFetched | WorkFailed
)
"""One line of a streamed answer. After `ProgressMade` and `TemplateMaking` others follow."""


class AcceptPeer(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a port at which the agent of another host is served, over TLS 1.3, until the client leaves.

    :param identity: the certificate with which both agents identify themselves, and its private key, as PEM.
    """

    identity: str


class PeerAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """An agent listens for another one.

    :param address: the address at which the agent's sshd accepted the connection to the host.
    """

    address: str
    port: int


class ConnectPeer(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a socket that leads to the agent of another host, until the client leaves.

    :param identity: as in `AcceptPeer`.
    """

    address: str
    port: int
    identity: str


class PeerConnected(msgspec.Struct, frozen=True, kw_only=True):
    """The other agent answers at this UNIX socket of the host."""

    path: str
