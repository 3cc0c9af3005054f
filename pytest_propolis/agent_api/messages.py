"""What clients and the agent say to each other beside the Propolis API: bodies of the agent's own paths."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

from ..errors import AgentError, PropolisError
from ..propolis_api import Component, InstanceProperties, InstanceSpec
from ..storage.artifacts import Artifact
from .boot_source import BootSource
from .image_recipe import ImageRecipe
from .retention import Kept
from .server_program import ServerProgram

__all__ = [
    "CLIENT_HEADER",
    "LOG_NAME",
    "PID_HEADER",
    "SOCKET_NAME",
    "AgentConfig",
    "AgentInfo",
    "AgentReady",
    "AttachDisk",
    "CreateDisk",
    "CreateVm",
    "CreateVolume",
    "Departed",
    "DiskCreated",
    "DownstairsFault",
    "DownstairsListed",
    "ExtendedInfo",
    "Fault",
    "FaultKind",
    "ForkImage",
    "ForkVm",
    "FreezeVm",
    "ImageForked",
    "ImageNeeded",
    "Keep",
    "KeptDisk",
    "KeptListed",
    "ResourceIds",
    "StreamLine",
    "TemplateMaking",
    "TemplateNeeded",
    "VmCreated",
    "VmForked",
    "VmListed",
    "VolumeCreated",
    "VolumeListed",
    "new_client",
    "run_of_client",
]

SOCKET_NAME: Final = "agent.sock"
"""Where in a run directory its agent listens."""

LOG_NAME: Final = "agent.log"
"""Where in a run directory its agent writes what it does."""

CLIENT_HEADER: Final = "x-propolis-client"
"""Every request of a client names it: what it creates is released when its lifeline breaks."""

PID_HEADER: Final = "x-propolis-pid"
"""The process id of a client, given with its lifeline; 0 for a client on another host."""


def new_client(run: str) -> str:
    """Return an id for a client that is a process of a run."""
    return f"{run}.{secrets.token_hex(8)}"


def run_of_client(client: str) -> str:
    """Return the id of the run that a client of `new_client` belongs to."""
    return client.partition(".")[0]


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is started with.

    :param run: an unguessable word: all that belongs to this run carries it.
    :param directory: the agent's own directory, mode 0700, existing.
    :param artifact_dir: the store of images; the user's cache if None.
    :param peer_stores: stores on the same machine: what is complete there is linked or copied rather than fetched or
        made again.
    :param qemu: the QEMU program; found on PATH if None.
    :param accelerator: ``auto``, ``kvm`` or ``tcg``.
    :param standby: how many forks of each kind stand by; None for as many as are good for this machine.
    :param disk_dir: where the disks lie that VMs write to; with the images if None.
    :param image_dirs: where files may lie that disk images name, beside the images' own directories.
    :param lingers: whether it stays after its last client, for as long as that one asked for.
    """

    run: str
    directory: str
    artifact_dir: str | None = None
    peer_stores: tuple[str, ...] = ()
    qemu: str | None = None
    accelerator: str = "auto"
    standby: int | None = None
    disk_dir: str | None = None
    image_dirs: tuple[str, ...] = ()
    lingers: bool = False


class AgentReady(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent tells the one who started it, once it listens."""

    pid: int
    socket: str


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of itself."""

    pid: int
    run: str
    version: str
    qemu: str
    qemu_version: str
    accelerator: str
    accelerator_reason: str
    standing_by: int = 0


class CreateVm(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a Propolis server of one's own.

    :param name: for people.
    :param group: what the VM belongs to (a test's node id): names are unique in it.
    :param boot: what its VM starts from.
    :param log_path: where QEMU's own messages go; if empty, into the VM's directory.
    :param display: whether its VM has a display.
    :param guest_ports: whether its VM has guest ports, each a websocket below ``/ports/`` of the VM.
    :param memory_mib: what it will need of the host's memory, in MiB; 0 if that is not to be looked at.
    :param copy_disks: whether a VM that migrates in gets disks of its own, also where it could use the source's.
    :param predecessor: the id of the VM whose place it takes: it finds that one's firmware variables when it boots.
    :param program: the program that is to serve it, as a process of its own; None for the engine in the agent.
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
    metric_addr: str | None = None


class VmCreated(msgspec.Struct, frozen=True, kw_only=True):
    """A Propolis server is there: its API is below `path`.

    :param port: of the host's loopback interface, where the server is a process of its own; its API is there alone.
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
    """What the Propolis API does not say of a VM.

    :param display_socket: the UNIX socket of its display's VNC server; None without a display or while it is down.
    :param panics: how often its guest reported a panic through the pvpanic device.
    :param failure: why it could not go on, where its disks are the reason.
    """

    display_socket: str | None
    panics: int
    failure: str | None = None


class ImageNeeded(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for an artifact, or for what a recipe makes of three, on the agent's host.

    With a recipe, `artifacts` holds what its hashes name. The answer is a stream of `StreamLine`.
    """

    artifacts: tuple[Artifact, ...]
    recipe: ImageRecipe | None = None
    timeout_s: float = 300.0


class CreateDisk(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a disk of one's own: a copy-on-write fork of an image, or an empty one.

    :param image: absolute path of the image, which must not change while forks live; None for an empty disk.
    :param image_format: ``qcow2`` or ``raw``; None for raw, unless the image looks like a container.
    :param size_bytes: the size of an empty disk.
    :param block_size: the disk has whole blocks of so many bytes: what the image lacks of the last one reads as zeros.
    """

    image: str | None = None
    image_format: str | None = None
    size_bytes: int | None = None
    block_size: int = 512


class ForkImage(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a writable fork of an image, which is a resource of its own: no VM is needed for it.

    :param image: path of the image on the agent's host, or of its ZFS volume; it must not change while forks live.
    :param image_format: ``qcow2`` or ``raw``.
    :param providers: the names of the providers that will do; any, if empty.
    """

    image: str
    image_format: str = "qcow2"
    providers: tuple[str, ...] = ()


class ImageForked(msgspec.Struct, frozen=True, kw_only=True):
    """The fork: a file or a block device on the agent's host that belongs to the client.

    :param size_bytes: the size of the disk that a guest sees.
    :param note: what a person should know of the way that was chosen; empty if nothing.
    """

    id: str
    path: str
    format: str
    provider: str
    origin: str
    size_bytes: int
    dataset: str | None = None
    note: str = ""


class DiskCreated(msgspec.Struct, frozen=True, kw_only=True):
    """The disk: a qcow2 file that belongs to the client."""

    id: str
    path: str


class CreateVolume(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a replicated volume of one's own: three downstairs.

    :param name: for people.
    :param group: what it belongs to.
    :param size_bytes: at least; it becomes a whole number of extents of 64 MiB, and is never smaller than the image.
    :param block_size: 512 or 4096.
    :param image: path of an image that it lies over, and which must not change meanwhile; None for an empty one.
    :param image_format: ``qcow2`` or ``raw``.
    :param stall_timeout_s: how long the guest's requests wait, when too few replicas are left.
    """

    name: str
    group: str
    size_bytes: int
    stall_timeout_s: float = 60.0
    block_size: int = 4096
    image: str | None = None
    image_format: str = "raw"


class VolumeCreated(msgspec.Struct, frozen=True, kw_only=True):
    """The volume: what volume construction requests for it say.

    :param upstairs_id: of whichever upstairs uses it.
    :param key: what the upstairs has to know, in base64.
    :param targets: the addresses of its downstairs.
    :param black_hole: an address that takes connections and never answers.
    :param parent: the image that it lies over.
    """

    id: str
    upstairs_id: UUID
    key: str
    size_bytes: int
    extent_bytes: int
    targets: tuple[str, ...]
    black_hole: str
    parent: str | None = None


class DownstairsListed(msgspec.Struct, frozen=True, kw_only=True):
    """One downstairs on the agent's host.

    :param state: ``serving``, ``idle``, ``paused`` or ``dead``.
    :param path: its file, on that host.
    :param generation: of the upstairs that had it last.
    :param epoch: those of the highest have all writes.
    :param snapshots: the files of its snapshots.
    :param log: the last lines that its process wrote.
    """

    address: str
    state: str
    pid: int | None
    path: str
    generation: int
    epoch: int
    snapshots: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


class VolumeListed(msgspec.Struct, frozen=True, kw_only=True):
    """One volume of the agent's; also the downstairs that were replaced."""

    id: str
    name: str
    group: str
    client: str
    size_bytes: int
    since: float
    downstairs: tuple[DownstairsListed, ...]
    kept: Kept | None = None


class FaultKind(StrEnum):
    """What can be done to a downstairs."""

    KILL = "kill"
    RESTART = "restart"
    PAUSE = "pause"
    RESUME = "resume"
    DISCONNECT = "disconnect"
    CORRUPT = "corrupt"
    SLOW = "slow"


class DownstairsFault(msgspec.Struct, frozen=True, kw_only=True):
    """Have something happen to a downstairs.

    :param offset: with `CORRUPT`, where in the volume, in bytes.
    :param length: with `CORRUPT`, how many bytes.
    :param delay_ms: with `SLOW`, how far apart its requests are served; 0 for at once.
    """

    kind: FaultKind
    offset: int = 0
    length: int = 0
    delay_ms: float = 0.0


class AttachDisk(msgspec.Struct, frozen=True, kw_only=True):
    """Have a disk plugged into a VM that runs. The answer is the VM's spec with it.

    :param components: the disk and its backend, by key.
    """

    components: dict[str, Component]


class ResourceIds(msgspec.Struct, frozen=True, kw_only=True):
    """Some of what a client owns, by id.

    :param named: VMs by group and name, for who does not know the id.
    """

    vms: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the agent to take VMs and disks over from a client: they stay when the client leaves.

    :param resources: which; what is gone already is passed over.
    :param reason: for people.
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
    """What was kept at one request. Its disks go when its VMs have ended."""

    id: str
    kept: Kept
    vms: tuple[VmListed, ...]
    disks: tuple[KeptDisk, ...]
    volumes: tuple[VolumeListed, ...] = ()


class TemplateNeeded(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a template, which the client makes itself if there is none.

    The answer is a stream of `StreamLine`. One of them may be `making`: then the client boots that VM, makes its guest
    quiet, and freezes it; the stream goes on meanwhile, and ends with `template`.

    :param title: what it is a template of, for people.
    :param boot: what its guest starts from.
    :param spec: the machine; the paths of its disks are `engine.template.disk_file` names.
    :param disks: what the disks are made of, in that order.
    :param guest: changes with everything else that shapes it: the guest's adapter, the shell protocol.
    :param log_path: where the messages of the QEMU that makes it go; if empty, into its directory.
    :param guest_ports: whether the machine has guest ports.
    """

    title: str
    boot: BootSource
    spec: InstanceSpec
    properties: InstanceProperties
    disks: tuple[CreateDisk, ...]
    guest: str
    log_path: str
    guest_ports: bool = False


class TemplateMaking(msgspec.Struct, frozen=True, kw_only=True):
    """A VM is there to become a template: its API is below `path`, its disks are in place."""

    id: str
    path: str
    spec: InstanceSpec


class FreezeVm(msgspec.Struct, frozen=True, kw_only=True):
    """The VM of a `TemplateMaking` is ready to be frozen.

    :param session: the word of the read-eval loop that waits for commands in its guest.
    :param console: what it showed until the log-in was complete.
    :param warmup_input: what to type so that its guest runs a command that changes nothing.
    :param warmup_marker: what it shows at the very end of it.
    """

    session: str
    console: str
    warmup_input: str
    warmup_marker: str


class ForkVm(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for a Propolis server whose first VM goes on where a template stopped.

    :param template: the key that the answer to `TemplateNeeded` gave.
    :param added: disks and network cards that it has beyond the template's.
    :param run: make the instance with these properties, and run it; without them the client does so.
    :param typed: what is typed at it then. It tells the time, and so is left out if the fork is not ready at once.
    :param metric_addr: as in `CreateVm`.
    """

    template: str
    name: str
    group: str
    log_path: str
    added: dict[str, Component] = {}
    run: InstanceProperties | None = None
    typed: str = ""
    metric_addr: str | None = None


class VmForked(msgspec.Struct, frozen=True, kw_only=True):
    """A fork has started. It waits to be ensured with this spec, and run, unless that was asked for.

    :param boot: what its VM starts from when it is reset.
    :param session: the word of the read-eval loop that waits for commands in its guest.
    :param typed: whether it was given what was to be typed.
    :param took_s: how long the steps took, in seconds; empty for one that stood by.
    """

    id: str
    path: str
    spec: InstanceSpec
    boot: BootSource
    session: str
    typed: bool
    took_s: dict[str, float]


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


class StreamLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a streamed answer: progress, and at the end what was asked for, or a fault."""

    progress: str | None = None
    making: TemplateMaking | None = None
    paths: tuple[str, ...] | None = None
    template: str | None = None
    fault: Fault | None = None
