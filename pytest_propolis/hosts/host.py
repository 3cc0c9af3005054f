"""A host: a machine with an agent of the run, and the interface that higher layers use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from ..storage.host_path import host_path

if TYPE_CHECKING:  # A controller of pytest-xdist only reads the inventory: it needs no client of an agent.
    from ..agent_api.derived import DerivedNeeded
    from ..agent_api.messages import ResourceIds
    from ..propolis_api.connection.endpoint import Endpoint
    from ..storage.artifacts import Artifact
    from ..storage.progress import Progress
    from .agent_clients.asynchronous import AsyncAgentClient
    from .agent_clients.synchronous import AgentClient

__all__ = [
    "CommandOutput",
    "Host",
    "HostConnection",
    "HostSpec",
    "Machine",
    "TemplateKind",
    "Unfinished",
    "log_path_on",
]


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A host as the inventory describes it.

    :param name: unique in the inventory.
    :param kind: its kind, a key of `kinds.HOST_KINDS`.
    :param address: its address, in the format of its kind; for VMs of other hosts, and for messages.
    :param slots: how many test VMs it runs at once; None: as many as its memory allows.
    :param cpus: processors that VMs may use; None: as probed.
    :param memory_mib: memory that VMs may use, in MiB; None: as probed.
    :param labels: labels that tests can require.
    :param options: further keys, specific to the kind.
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
    """A factory that may still own resources of a host."""

    @property
    def resources(self) -> ResourceIds:
        """The resources."""


class TemplateKind(Protocol):
    """What all forks of one template have in common. It is hashable, and equal kinds have the same template."""

    @property
    def title(self) -> str:
        """What it is a template of, for users."""

    def __hash__(self) -> int: ...


class Machine(NamedTuple):
    """The size of a machine."""

    processors: int
    memory_mib: int


class CommandOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A finished command: its exit status and output."""

    status: int
    output: str
    stderr: str


class HostConnection(Protocol):
    """An open connection to another machine, for commands of this project that need no agent of their own."""

    async def run(self, program: str, arguments: Sequence[str]) -> CommandOutput:
        """Call a function of this project on the host, to its end.

        :param program: the module and the function, which takes the arguments: ``package.module:function``.
        :raises HostError: when it cannot be started there, or the connection is lost.
        """

    async def measure(self) -> Machine:
        """Query the processors and the memory of the host's machine.

        :raises HostError: when it does not answer as it should.
        """

    async def forward(self, remote: str) -> Path:
        """Forward a local socket to one of the host, while the connection is open; return its path.

        :raises HostError: when that cannot be.
        """

    async def forward_port(self, remote: int) -> int:
        """Forward a loopback port of this machine to one of the host, while the connection is open; return its number.

        :raises HostError: when that cannot be.
        """


class Host(Protocol):
    """A host for the lifetime of one pytest process.

    Creating it opens no connection. It is independent of event loops, unlike each `client`.
    """

    was_up: bool
    """Whether its agent was ever requested."""

    unfinished: list[Unfinished]
    """Factories whose teardown was cancelled: their resources are removed before the next one is opened."""

    templates: dict[TemplateKind, str]
    """Keys of the templates that are known to exist, by their kind."""

    others: Sequence[Host]
    """The hosts of its run, from which it may fetch files that they have."""

    @property
    def name(self) -> str:
        """Its name for users; unique in a run."""

    @property
    def address(self) -> str:
        """Its network address, or ``localhost``."""

    @property
    def labels(self) -> frozenset[str]:
        """Labels that tests can require."""

    @property
    def run_id(self) -> str:
        """The id of the run on this host. All resources of the run there carry it."""

    @property
    def agent_id(self) -> str:
        """The id that its agent's resources carry: that of the run, unless the agent serves others, too."""

    @property
    def command_options(self) -> str:
        """The options with which `propolis console` finds VMs there, with a leading space; empty for this machine."""

    @property
    def shares_files(self) -> bool:
        """Whether it shares this machine's file system, so that its agent can use local paths."""

    @property
    def is_lost(self) -> bool:
        """Whether it was unreachable or lost when it was last used."""

    @property
    def agent(self) -> AgentClient | None:
        """A synchronous client of its agent; None while the agent is down."""

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
        """Copy a file of this machine to the host; either the complete file exists there, or none.

        :raises HostError: naming the file.
        """

    async def get(self, remote: Path, local: Path) -> None:
        """Copy a file of the host to this machine; either the complete file exists here, or none.

        :raises HostError: naming the file.
        """

    async def provide(self, path: Path, progress: Progress, *, content: str | None = None) -> str:
        """Return the path at which the host has the content of a file of this machine; it is sent if necessary.

        It must not be modified there.

        :param content: the name of the content, if known; otherwise the file is read to determine it.
        :raises HostError: naming the file.
        """

    async def provide_artifact(self, artifact: Artifact, progress: Progress) -> Artifact:
        """Return an artifact as to be requested from the host's agent; files that only this machine has are sent.

        :raises ArtifactError: when it is not available.
        """

    async def provide_derived(self, needed: DerivedNeeded, progress: Progress, *, title: str) -> None:
        """Have the host fetch a template or prepared image that it lacks from another one that has it.

        :param title: what it is, for users.
        :raises HostLost: when the connection to the host has been lost.
        """

    async def address_for_agent(self, endpoint: Endpoint, *, on: Host) -> str:
        """Return the address at which this host's agent reaches the server of a VM, which may be on another host.

        :param endpoint: the address for this process.
        :param on: the VM's host.
        :raises HostError: when the agent cannot reach that host.
        """

    async def forward_port(self, port: int) -> int:
        """Return a port of this machine's loopback interface that is forwarded to one of the host's, until closed.

        :raises HostError: when that cannot be.
        """

    def close(self) -> None:
        """Disconnect from the agent, which then releases what this process still owns. Idempotent.

        :raises AgentError: when the agent left something behind.
        """


def log_path_on(host: Host, path: Path) -> str:
    """Return the path for an agent to write QEMU's messages to; empty for the agent's choice.

    Why the log of a local host goes there at once: docs/decisions/2026-11-28-agent-and-files.md.
    """
    return host_path(path, purpose="the log of QEMU") if host.shares_files else ""
