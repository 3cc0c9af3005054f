"""A host that SSH reaches, for the length of one process."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.agent_process import AgentOptions
from ..agent_api.derived import DerivedNeeded
from ..errors import AgentError, ArtifactMissing, HostError, HostLost
from ..ledger.rendezvous import Rendezvous
from ..propolis_api.connection.endpoint import Endpoint
from ..settings import Settings
from ..storage.artifacts import Artifact
from ..storage.file_stream import digest
from ..storage.host_path import host_path
from ..storage.progress import Progress
from ..storage.sources import LocalFile
from ..storage.store import ArtifactStore
from ..storage.user_directories import cache_directory, default_artifact_dir
from .agent_clients.asynchronous import AsyncAgentClient
from .agent_clients.responses import BASE_URL
from .agent_clients.synchronous import AgentClient
from .host import Host, HostSpec, TemplateKind, Unfinished
from .joined.messages import JoinDestination
from .lifeline import AgentNotRunning, Lifeline
from .peers.direct_paths import DirectPaths
from .peers.shared_derived import provide_derived
from .peers.shared_files import LARGE_BYTES, SharedFile, path_of_content, provide
from .ssh.bootstrap import HostFacts
from .ssh.host_options import check_options, destination_of, further_options, may_connect_directly
from .ssh.link_client import JoinedLink, join_or_start, link_base, new_link_directory
from .ssh.link_messages import LinkConfig
from .ssh.loader import FILES
from .ssh.transport.transport import SshDestination

__all__ = ["SshHost", "open_host"]

COMMAND_TIMEOUT_S: Final = 300.0
LINK_END_TIMEOUT_S: Final = 30.0
JOIN_ATTEMPTS: Final = 3
NOT_THERE: Final = 0
"""This process's id at the agent: on the host the number is another process's."""

QUOTED_BYTES: Final = 2000
LOOPBACK: Final = "127.0.0.1"


def open_host(spec: HostSpec, settings: Settings, run_id: str) -> SshHost:
    """Make a host of an inventory.

    Its options are ``config`` (a file of SSH configuration instead of the user's), ``python`` (the command of the
    host's Python), ``qemu`` (its QEMU program), ``artifact_dir`` (its store of images), ``silence_s`` (after how
    many seconds without a sign of life it counts as lost), and ``direct`` (whether its agent may be connected directly
    with those of other hosts).

    :raises SettingsError: when an option is not known, or has a bad value.
    """
    check_options(spec)
    return SshHost(spec, settings, run_id=run_id)


class SshHost:
    """A host with an agent that this project brings there and reaches over SSH.

    The connection is made, and the agent started, with the first client that is asked for.

    :param run_id: the id of the run on this host; unguessable, and the same in all processes of the run.
    """

    def __init__(self, spec: HostSpec, settings: Settings, *, run_id: str) -> None:
        self._spec = spec
        self._settings = settings
        self._run = run_id
        self._client_id = secrets.token_hex(8)
        self._joined: tuple[JoinedLink, Lifeline] | None = None
        self._lost_link: JoinedLink | None = None
        """The link whose loss some request has told of: the next one may find the host back."""
        self.was_up = False
        self._is_unreachable = False
        self._provided: set[str] = set()
        self._forwarded: dict[int, int] = {}
        """The host's ports that `forward_port` was asked for, by those of this machine."""
        self._direct = DirectPaths(self.name)
        self.unfinished: list[Unfinished] = []
        self.templates: dict[TemplateKind, str] = {}
        self.others: Sequence[Host] = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def listens_for_peers(self) -> bool:
        """Whether its agent may listen for those of other hosts."""
        return may_connect_directly(self._spec)

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def address(self) -> str:
        return self._spec.address

    @property
    def labels(self) -> frozenset[str]:
        return self._spec.labels

    @property
    def run_id(self) -> str:
        return self._run

    @property
    def agent_id(self) -> str:
        return self._run

    @property
    def command_options(self) -> str:
        return f" --hosts {shlex.quote(str(self._settings.hosts))} --host {self.name}"

    @property
    def shares_files(self) -> bool:
        return False

    @property
    def is_up(self) -> bool:
        return self._joined is not None

    @property
    def facts(self) -> HostFacts | None:
        """The facts that its loader reported, while its agent is up."""
        return self._joined[0].ready.facts if self._joined else None

    @property
    def is_lost(self) -> bool:
        return self._is_unreachable or (self._joined is not None and self._joined[0].loss() is not None)

    @property
    def agent(self) -> AgentClient | None:
        return AgentClient(self._joined[0].agent_socket, client=self._client_id) if self._joined else None

    async def client(self) -> AsyncAgentClient:
        """
        :raises HostLost: when the connection to the host has been lost, and no request has reported it yet.
        """
        link = await self._link()

        async def explain() -> HostLost | None:
            loss = await link.explain()
            if loss is not None:
                self._lost_link = link
            return loss

        return AsyncAgentClient(link.agent_socket, client=self._client_id, loss=explain)

    async def run(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        answer = await (await self._link()).run(command, timeout_s=timeout_s)
        if answer.status != 0:
            output = (answer.stderr.strip() or answer.output.strip())[-QUOTED_BYTES:].decode(errors="replace")
            raise HostError(
                f"host {self.name}: {command!r} ended with status {answer.status}: {output or 'it output nothing'}"
            )
        return answer.output.decode(errors="replace").rstrip("\n")

    async def put(self, local: Path, remote: Path) -> None:
        await (await self._link()).put(local, str(remote))

    async def get(self, remote: Path, local: Path) -> None:
        await (await self._link()).get(str(remote), local)

    async def provide(self, path: Path, progress: Progress, *, content: str | None = None) -> str:
        link = await self._link()
        path = Path(host_path(path, purpose="a file"))
        file = await asyncio.to_thread(_shared_file, path, content)
        there = path_of_content(_files_directory(link), file.content, path.name)
        if there not in self._provided:

            async def send() -> None:
                progress(f"host {self.name}: {path.name} is sent there unless it has it")
                await link.put(path, there, once=True)

            if (others := self._others()) and file.size >= LARGE_BYTES:
                await provide(file, to=self, others=others, send=send, progress=progress)
            else:
                await send()
            self._provided.add(there)
        return there

    async def files_directory(self) -> Path | None:
        """Return its directory of files that are named by their content; None if the run has no agent there now."""
        if self._joined is None:
            is_up = Rendezvous(link_base(), self._run).socket() is not None
            return _files_directory(await self._link()) if is_up else None
        link, lifeline = self._joined
        return None if lifeline.is_broken or link.loss() else _files_directory(link)

    async def provide_derived(self, needed: DerivedNeeded, progress: Progress, *, title: str) -> None:
        if others := self._others():
            await provide_derived(needed, to=self, others=others, progress=progress, title=title)

    def _others(self) -> list[SshHost]:
        return [host for host in self.others if isinstance(host, SshHost) and host is not self]

    async def provide_artifact(self, artifact: Artifact, progress: Progress) -> Artifact:
        store = ArtifactStore(self._settings.artifact_dir or default_artifact_dir())
        path = await store.get(artifact, progress)
        there = await self.provide(path, progress, content=artifact.sha256)
        return dataclasses.replace(artifact, source=LocalFile(there))

    async def address_for_agent(self, endpoint: Endpoint, *, on: Host) -> str:
        """Return a socket or a port of the host, which the link connects with the server that this machine reaches."""
        link = await self._link()
        if endpoint.uds is None:
            return await self._address_of_program(endpoint, link)
        socket = link.ready.agent_socket if on.name == self.name else await self._path_to(on, endpoint.uds, link)
        return dataclasses.replace(endpoint, uds=Path(socket)).address

    async def _path_to(self, on: Host, socket: Path, link: JoinedLink) -> str:
        """Return the socket on this host that leads to one of another host which is known here by a local one."""
        if isinstance(on, SshHost) and self._may_reach(on) and socket == (await on._link()).agent_socket:
            direct = await self._direct_path_to(on)
            if direct is not None:
                return direct
        return await link.forward_remote(socket)

    async def direct_address_of(self, other: SshHost) -> str | None:
        """Return the address at which its agent reaches that of another host directly; None if it does not."""
        path = await self._direct_path_to(other) if self._may_reach(other) else None
        return path and Endpoint(base_url=BASE_URL, uds=Path(path)).address

    def _may_reach(self, other: SshHost) -> bool:
        return may_connect_directly(self._spec) and other.listens_for_peers

    async def _direct_path_to(self, other: SshHost) -> str | None:
        """Return the socket on this host that leads to the agent of another one; None if it cannot be reached."""
        links = (await self._link()).agent_socket, (await other._link()).agent_socket
        return await self._direct.to(other, own=self, links=links)

    async def forward_port(self, port: int) -> int:
        here = await (await self._link()).forward_port(port)
        self._forwarded[here] = port
        return here

    async def _address_of_program(self, endpoint: Endpoint, link: JoinedLink) -> str:
        host, port = endpoint.host_and_port
        if host != LOOPBACK:
            return endpoint.address
        there = self._forwarded[port] if port in self._forwarded else await link.forward_remote_port(port)
        return dataclasses.replace(endpoint, base_url=f"http://{LOOPBACK}:{there}").address

    def close(self) -> None:
        """Disconnect from the agent, which then releases this process's resources, and exits if nothing else needs it.

        Waits within bounds until that is done. Idempotent.
        """
        joined, self._joined = self._joined, None
        if joined is None:
            return
        link, lifeline = joined
        lifeline.close()
        try:
            if not lifeline.is_dropped and link.loss() is None:
                AgentClient(link.agent_socket).departure(self._client_id)
        except AgentError:
            pass  # it leaves, or is gone
        finally:
            link.close(wait_s=LINK_END_TIMEOUT_S)

    async def _link(self) -> JoinedLink:
        """Return the link, joined or started, which carries this process's lifeline to the agent."""
        if self._joined is not None:
            link, lifeline = self._joined
            if not lifeline.is_broken:
                return link
            self._joined = None
            self.templates.clear()
            self._provided.clear()
            lifeline.close()
            loss = await link.explain(within_s=LINK_END_TIMEOUT_S)  # an agent that is gone takes its link along
            link.close()
            if loss is not None and self._lost_link is not link:
                self._is_unreachable = True
                raise loss
        self.was_up = self._is_unreachable = True
        link = self._first(*await self._join())
        self._is_unreachable = False
        return link

    async def _join(self) -> tuple[JoinedLink, Lifeline]:
        for _ in range(JOIN_ATTEMPTS):
            link = await join_or_start(self._link_config())
            try:
                return link, await Lifeline.open(link.agent_socket, client=self._client_id, pid=NOT_THERE)
            except AgentNotRunning:
                # The agent leaves with its last client, and its link with it: the next one is this client's.
                loss = await link.explain(within_s=LINK_END_TIMEOUT_S)
                link.close()
            except BaseException:
                link.close()
                raise
        raise loss or HostError(f"host {self.name}: its agent does not answer")

    def _first(self, link: JoinedLink, lifeline: Lifeline) -> JoinedLink:
        if self._joined is None:
            self._joined = link, lifeline
        else:  # another task was faster; the agent lets a client have several lifelines
            lifeline.close()
            link.close()
        return self._joined[0]

    def _destination(self) -> SshDestination | JoinDestination:
        return destination_of(self._spec)

    def _link_config(self) -> LinkConfig:
        return LinkConfig(
            destination=self._destination(),
            run=self._run,
            directory=str(new_link_directory(self._run)),
            bundle_cache=str(cache_directory()),
            options=msgspec.convert(self._settings, AgentOptions, from_attributes=True),
            **further_options(self._spec),
        )


def _files_directory(link: JoinedLink) -> Path:
    assert link.ready.facts.bundle_directory is not None  # else there were no agent
    return Path(link.ready.facts.bundle_directory).parent / FILES


def _shared_file(path: Path, content: str | None) -> SharedFile:
    """
    :raises ArtifactMissing: when it cannot be read.
    """
    try:
        found = path.stat()
        found_digest = _digest_of(path) if content is None else None
    except OSError as error:
        raise ArtifactMissing(f"{path}: {error.strerror}", hint="check the path and its permissions") from None
    return SharedFile(
        path=path,
        content=content or found_digest or "",
        size=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        digest=lambda: found_digest or _digest_of(path),
    )


def _digest_of(path: Path) -> str:
    found = path.stat()
    return _digest_then(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest_then(path: Path, _inode: int, size: int, _modified_ns: int) -> str:
    """Return the digest of a file as it was: the hosts of a run need the same files."""
    with path.open("rb") as file:
        return digest(file.fileno(), size)
