"""The local host: the one that needs no SSH."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Final, Protocol

from ..agent_api.messages import AgentConfig, ResourceIds
from ..errors import AgentError
from ..ledger.ledger import LEDGER_NAME, read_ledger
from ..settings import Settings
from .agent_client import AsyncAgentClient
from .launcher import Launched, connect_or_launch
from .living_agent import AgentClient
from .run_directory import agent_directory, run_token

__all__ = ["LocalHost"]

AGENT_LEAVE_TIMEOUT_S: Final = 15.0

logger = logging.getLogger(__name__)


class Unfinished(Protocol):
    """What has taken something of the host, and may not have given it back."""

    @property
    def belongings(self) -> ResourceIds: ...


class LocalHost:
    """This machine, for the length of one process.

    The agent starts with the first client that is asked for. The host is tied to no event loop: each `client` is.

    :param shared_id: what all processes of a run know and nobody else does (xdist's run id); None for a run of one.
    """

    def __init__(self, settings: Settings, *, shared_id: str | None = None) -> None:
        self._settings = settings
        self._run = run_token(shared_id)
        self._client_id = secrets.token_hex(8)
        self._launched: Launched | None = None
        self.was_up = False
        """Whether the agent was ever asked for."""
        self.unfinished: list[Unfinished] = []
        """What was about to end, and was not heard of since."""
        self.templates: dict[object, str] = {}
        """Keys of the templates that are known to be on this host, by what they are templates of."""

    @property
    def run(self) -> str:
        return self._run

    @property
    def directory(self) -> Path | None:
        """The agent's private directory, while it is up."""
        return self._launched.socket.parent if self._launched else None

    @property
    def is_up(self) -> bool:
        return self._launched is not None

    @property
    def agent(self) -> AgentClient | None:
        """The agent, for who has no event loop, while it is up."""
        return AgentClient(self._launched.socket, client=self._client_id) if self._launched else None

    async def client(self) -> AsyncAgentClient:
        """A client of this host's agent, for the running event loop. The caller closes it.

        :raises AgentError: when the agent does not start.
        :raises HostError: when the run directory cannot be had.
        """
        if self._launched is not None and self._launched.lifeline.is_broken:
            logger.warning("the agent behind %s has ended: another one is started", self._launched.socket)
            self._launched.lifeline.close()
            self._launched = None
            self.templates.clear()
        if self._launched is None:
            self.was_up = True
            self._launched = self._first(await connect_or_launch(self._config(), client=self._client_id))
        return AsyncAgentClient(self._launched.socket, client=self._client_id)

    def _first(self, launched: Launched) -> Launched:
        if self._launched is None:
            return launched
        launched.lifeline.close()  # another task was faster; the agent lets a client have several lifelines
        return self._launched

    def close(self) -> None:
        """Let go of the agent, which then releases what this process still owns, and leaves if nobody else needs it.

        Waits within bounds until that is done; if this process started the agent and nobody needs it any more, also
        until it has left, and looks whether all is gone. Closing twice is fine.

        :raises AgentError: when the agent left something behind.
        """
        launched, self._launched = self._launched, None
        if launched is None:
            return
        launched.lifeline.close()
        if launched.lifeline.is_dropped or _agent_stays(launched.socket, self._client_id):
            return
        if launched.wait_until_left(AGENT_LEAVE_TIMEOUT_S):
            _require_gone(launched.socket.parent)

    def _config(self) -> AgentConfig:
        settings = self._settings
        return AgentConfig(
            run=self._run,
            directory=str(agent_directory(self._run)),
            artifact_dir=str(settings.artifact_dir) if settings.artifact_dir else None,
            qemu=str(settings.qemu) if settings.qemu else None,
            accelerator=settings.accelerator,
            standby=None if settings.standby == "auto" else settings.standby,
            disk_dir=str(settings.disk_dir) if settings.disk_dir else None,
            image_dirs=tuple(map(str, settings.image_dirs or ())),
        )


def _agent_stays(socket: Path, client: str) -> bool:
    """Wait until what the client owned is released. Whether the agent stays: for other clients, or with kept things."""
    try:
        return AgentClient(socket).departure(client).agent_stays
    except AgentError:
        return False  # it leaves, or is gone


def _require_gone(directory: Path) -> None:
    """An agent that leaves removes its directory last: what is there still is a leak, or the agent was killed."""
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
