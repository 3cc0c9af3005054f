"""The local host, which needs no SSH."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.agent_process import AgentConfig, AgentOptions
from ..agent_api.derived import DerivedNeeded
from ..agent_api.messages import new_client
from ..errors import AgentError, HostError
from ..ledger.ledger import LEDGER_NAME, read_ledger
from ..propolis_api.connection.endpoint import Endpoint
from ..settings import Settings
from ..storage.artifacts import Artifact
from ..storage.files import copy, space_errors
from ..storage.host_path import host_path
from ..storage.programs import run_program
from ..storage.progress import Progress
from ..storage.user_directories import default_artifact_dir, disk_directory
from .agent_clients.asynchronous import AsyncAgentClient
from .agent_clients.synchronous import AgentClient
from .host import Host, HostSpec, TemplateKind, Unfinished
from .launcher import Launched, connect_or_launch
from .lingering import AgentEnvironment, lingering_id
from .run_directory import agent_directory

__all__ = ["THIS_MACHINE", "LocalHost", "open_host"]

AGENT_LEAVE_TIMEOUT_S: Final = 15.0
COMMAND_TIMEOUT_S: Final = 300.0

THIS_MACHINE: Final = HostSpec(name="localhost", kind="local", address="localhost", options={})
"""The host of a run without an inventory."""

logger = logging.getLogger(__name__)


def open_host(spec: HostSpec, settings: Settings, run_id: str) -> LocalHost:
    """Open a local host of an inventory. It has a separate store, as a remote host has."""
    return LocalHost(settings, run_id=run_id, spec=spec)


class LocalHost:
    """This machine, or one of several local hosts that an inventory defines on it, for the lifetime of one process.

    The agent starts when the first client is requested.

    :param run_id: the id of the run on this host; unguessable, and the same in all processes of the run.
    :param spec: the inventory's description, if there is one.
    :param meanwhile: called while the agent starts, if this process starts it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run_id: str,
        spec: HostSpec = THIS_MACHINE,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        self._settings = settings
        self._spec = spec
        self._run = run_id
        self._environment = AgentEnvironment.of_process() if settings.linger else None
        self._client_id = new_client(run_id)
        self._meanwhile = meanwhile
        self._launched: Launched | None = None
        self.was_up = False
        self.unfinished: list[Unfinished] = []
        self.templates: dict[TemplateKind, str] = {}
        self.others: Sequence[Host] = ()

    def __repr__(self) -> str:
        return f"<LocalHost {self.name!r}>"

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

    @cached_property
    def agent_id(self) -> str:
        if self._environment is None:
            return self._run
        return lingering_id(self._config_of(self._run), self._environment)

    async def run(self, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        try:
            async with asyncio.timeout(timeout_s):
                finished = await run_program(["/bin/sh", "-c", command])
        except TimeoutError:
            raise HostError(f"host {self.name}: {command!r} did not end", waited_s=timeout_s) from None
        if finished.status != 0:
            raise HostError(
                f"host {self.name}: {command!r} ended with status {finished.status}: {finished.last_lines()}"
            )
        return finished.output.rstrip("\n")

    async def put(self, local: Path, remote: Path) -> None:
        await _copy_file(self.name, local, remote)

    async def get(self, remote: Path, local: Path) -> None:
        await _copy_file(self.name, remote, local)

    @property
    def command_options(self) -> str:
        return ""

    @property
    def shares_files(self) -> bool:
        return True

    @property
    def directory(self) -> Path | None:
        """The agent's private directory; None while the agent is down."""
        return self._launched.socket.parent if self._launched else None

    @property
    def is_up(self) -> bool:
        return self._launched is not None

    @property
    def is_lost(self) -> bool:
        return False

    @property
    def agent(self) -> AgentClient | None:
        return AgentClient(self._launched.socket, client=self._client_id) if self._launched else None

    async def client(self) -> AsyncAgentClient:
        if self._launched is not None and self._launched.lifeline.is_broken:
            logger.warning("the agent behind %s has ended: another one is started", self._launched.socket)
            self._launched.lifeline.close()
            self._launched = None
            self.templates.clear()
        if self._launched is None:
            self.was_up = True
            self._launched = self._first(await self._connect_or_launch())
        return AsyncAgentClient(self._launched.socket, client=self._client_id)

    async def provide(self, path: Path, progress: Progress, *, content: str | None = None) -> str:
        return host_path(path, purpose="a file")

    async def provide_artifact(self, artifact: Artifact, progress: Progress) -> Artifact:
        return artifact

    async def provide_derived(self, needed: DerivedNeeded, progress: Progress, *, title: str) -> None:
        pass

    async def address_for_agent(self, endpoint: Endpoint, *, on: Host) -> str:
        """Return the socket's own path: what this process reaches on its machine, the agent reaches, too."""
        return endpoint.address

    async def forward_port(self, port: int) -> int:
        return port

    async def _connect_or_launch(self) -> Launched:
        return await connect_or_launch(
            self._config_of(self.agent_id),
            client=self._client_id,
            linger_s=self._settings.linger,
            environment=self._environment.variables if self._environment else None,
            meanwhile=self._meanwhile,
        )

    def _first(self, launched: Launched) -> Launched:
        if self._launched is None:
            return launched
        launched.lifeline.close()  # another task was faster; the agent lets a client have several lifelines
        return self._launched

    def close(self) -> None:
        """Disconnect from the agent, which releases what this process still owns, and exits if it has no other client.

        Wait, for a limited time, until that is done. If this process started the agent and it has no other client, also
        wait until it has exited, and check that nothing is left behind. Idempotent.

        :raises AgentError: if the agent left something behind.
        """
        launched, self._launched = self._launched, None
        if launched is None:
            return
        launched.lifeline.close()
        if launched.lifeline.is_dropped or _agent_stays(launched.socket, self._client_id):
            return
        if launched.wait_until_left(AGENT_LEAVE_TIMEOUT_S):
            _require_gone(launched.socket.parent)

    def _config_of(self, agent_id: str) -> AgentConfig:
        settings = self._settings
        store = settings.artifact_dir
        peers: tuple[str, ...] = ()
        if self._spec is not THIS_MACHINE:
            shared = store or default_artifact_dir()
            store, peers = shared / "hosts" / self.name, (str(shared),)
        return AgentConfig(
            run=agent_id,
            directory=host_path(agent_directory(agent_id), purpose="the run directory"),
            artifact_dir=str(store) if store else None,
            peer_stores=peers,
            qemu=str(settings.qemu) if settings.qemu else None,
            options=msgspec.convert(settings, AgentOptions, from_attributes=True),
            disk_dir=str(settings.disk_dir or disk_directory(settings.artifact_dir)),
            image_dirs=tuple(map(str, settings.image_dirs or ())),
            lingers=self._environment is not None,
        )


async def _copy_file(host: str, source: Path, target: Path) -> None:
    """Copy a file atomically: the target has either the old content or the new one."""
    part = target.with_name(f".{target.name}.part")
    try:
        with space_errors(target.parent):
            await copy(source, part)
            part.chmod(source.stat().st_mode & 0o7777)
            part.replace(target)
    except OSError as error:
        raise HostError(f"host {host}: {source} cannot be copied to {target}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _agent_stays(socket: Path, client: str) -> bool:
    """Wait until the client's resources are released; return whether the agent stays for clients or kept resources."""
    try:
        return AgentClient(socket).departure(client).agent_stays
    except AgentError:
        return False  # it is exiting, or has exited


def _require_gone(directory: Path) -> None:
    """An agent removes its directory last when it exits: what remains is a leak, or the agent was killed."""
    if not directory.exists():
        return
    try:
        left = [f"{entry.kind} {entry.what}" for entry in read_ledger(directory / LEDGER_NAME).entries.values()]
    except (OSError, AgentError) as error:
        left = [str(error)]
    raise AgentError(
        "\n".join([f"the agent left something behind in {directory}:", *(f"  {line}" for line in left)]),
        hint="`propolis ps` shows it, `propolis gc` removes it",
    )
