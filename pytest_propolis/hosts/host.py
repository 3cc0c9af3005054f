"""A host: a machine with an agent of the run, and what everything above needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..agent_api.messages import ResourceIds
from ..propolis_api.connection.endpoint import Endpoint
from ..storage.artifacts import Artifact
from ..storage.host_path import host_path
from ..storage.progress import Progress
from .agent_client import AgentClient, AsyncAgentClient

__all__ = ["Host", "HostSpec", "Machine", "Unfinished", "log_path_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """A host as the inventory describes it.

    :param name: unique in the inventory.
    :param kind: what reaches it: a key of `kinds.HOST_KINDS`.
    :param address: where it is, in the words of its kind; for VMs of other hosts, and for people.
    :param slots: how many VMs of tests it takes at once; None: as many as its memory allows.
    :param cpus: processors that VMs may use; None: as probed.
    :param memory_mib: memory that VMs may use, in MiB; None: as probed.
    :param labels: words that tests can ask for.
    :param options: further keys, which the kind understands.
    """

    name: str
    kind: str
    address: str
    slots: int | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    labels: frozenset[str] = frozenset()
    options: Mapping[str, Any]


class Unfinished(Protocol):
    """What has taken something of a host, and may not have given it back."""

    @property
    def resources(self) -> ResourceIds:
        """What that is."""


class Machine(NamedTuple):
    """How big a machine is."""

    processors: int
    memory_mib: int


class Host(Protocol):
    """A host for the length of one pytest process. Making it connects to nothing.

    It is tied to no event loop: each `client` is.
    """

    was_up: bool
    """Whether its agent was ever asked for."""

    unfinished: list[Unfinished]
    """Factories whose teardown was cancelled: what they have is removed before the next one is opened."""

    templates: dict[object, str]
    """Keys of the templates that are known to be there, by what they are templates of."""

    @property
    def name(self) -> str:
        """What people call it; unique in a run."""

    @property
    def address(self) -> str:
        """Where it is: the address of its network, or ``localhost``."""

    @property
    def labels(self) -> frozenset[str]:
        """Words that tests can ask for."""

    @property
    def run_id(self) -> str:
        """The id of the run there. What belongs to the run on this host carries it."""

    @property
    def agent_id(self) -> str:
        """The id that what belongs to its agent carries: that of the run, unless the agent serves others, too."""

    @property
    def command_options(self) -> str:
        """What `propolis console` must be told to find VMs there, with a space before it; empty for this machine."""

    @property
    def shares_files(self) -> bool:
        """Whether its file system is this machine's, so that its agent can be told paths of it."""

    @property
    def is_lost(self) -> bool:
        """Whether it could not be reached, or was lost, when it was last used."""

    @property
    def agent(self) -> AgentClient | None:
        """A client of its agent for callers without an event loop; None while the agent is down."""

    async def client(self) -> AsyncAgentClient:
        """Return a client of its agent, for the running event loop. The caller closes it.

        :raises AgentError: when the agent does not start.
        :raises HostError: when the host cannot be used, naming it.
        """

    async def run(self, command: str, *, timeout_s: float = ...) -> str:
        """Run a shell command on the host, not in a guest, and return what it wrote to standard output.

        :raises HostError: when its exit status is not 0, or it does not end in time.
        """

    async def put(self, local: Path, remote: Path) -> None:
        """Copy a file of this machine to the host; it is complete there, or not there.

        :raises HostError: naming the file.
        """

    async def get(self, remote: Path, local: Path) -> None:
        """Copy a file of the host to this machine; it is complete here, or not here.

        :raises HostError: naming the file.
        """

    async def provide(self, path: Path, progress: Progress, *, content: str | None = None) -> str:
        """Return the path at which the host has the content of a file of this machine; it is sent if need be.

        It must not be written to there.

        :param content: what names the content, if that is known; else the file is read to find out.
        :raises HostError: naming the file.
        """

    async def provide_artifact(self, artifact: Artifact, progress: Progress) -> Artifact:
        """Return an artifact as the host's agent is to be asked for it; what only this machine has is sent.

        :raises ArtifactError: when it cannot be had.
        """

    async def address_for_agent(self, endpoint: Endpoint, *, on: Host) -> str:
        """Return where this host's agent finds the server of a VM, which may be on another host.

        :param endpoint: where this process finds it.
        :param on: the VM's host.
        :raises HostError: when the agent cannot reach that host.
        """

    async def reach_port(self, port: int) -> int:
        """Return a port of this machine's loopback interface that leads to one of the host's, while it is not closed.

        :raises HostError: when that cannot be.
        """

    def close(self) -> None:
        """Let go of the agent, which then releases what this process still owns. Closing twice is fine.

        :raises AgentError: when the agent left something behind.
        """


def log_path_on(host: Host, path: Path) -> str:
    """Return where an agent is to put the messages of a QEMU; nothing lets it choose a file of its own."""
    return host_path(path, purpose="the log of QEMU") if host.shares_files else ""
