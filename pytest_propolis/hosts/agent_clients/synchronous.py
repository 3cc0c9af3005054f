"""The synchronous client of an agent's own paths: for commands, and for pytest between tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar

import msgspec

from ...agent_api.agent_process import CLIENT_HEADER, SOCKET_NAME, LingerListed
from ...agent_api.messages import Departed, Keep, KeptListed, ResourceIds, VmListed
from ...agent_api.volumes import VolumeListed
from ...errors import AgentError
from ...ledger.identity import ProcessIdentity
from ...ledger.survey import survey
from ...propolis_api.connection.endpoint import Endpoint
from ...propolis_api.connection.http import request
from .responses import BASE_URL, ResponseDecoder

__all__ = ["AgentClient", "running_agents"]

T = TypeVar("T")
ANSWER_TIMEOUT_S: Final = 15.0
"""Requests are answered at once, or when VMs have ended, which takes seconds at most."""


class AgentClient:
    """Synchronous client of one agent.

    The constructor does not connect. Every method raises `AgentError` if the agent does not answer, or the error that
    it reports.

    :param client: the client id to send with requests, where required.
    :param process: the agent's process, if known.
    :param may_linger: whether it was started to stay after its last client.
    """

    def __init__(
        self, socket: Path, *, client: str = "", process: ProcessIdentity | None = None, may_linger: bool = False
    ) -> None:
        self.socket = socket
        self.process = process
        self.may_linger = may_linger
        self._decoder = ResponseDecoder(socket)
        self._client = client

    def answers(self) -> bool:
        """Return whether the agent responds: one that is starting or exiting does not."""
        try:
            self.vms()
        except AgentError:
            return False
        return True

    def vms(self) -> list[VmListed]:
        return self._request("GET", "/vms", list[VmListed])

    def kept(self) -> list[KeptListed]:
        return self._request("GET", "/kept", list[KeptListed])

    def release_kept(self) -> list[KeptListed]:
        """Make the agent remove everything that it keeps; return what was removed."""
        return self._request("DELETE", "/kept", list[KeptListed])

    def keep(self, request: Keep) -> KeptListed:
        """As `AsyncAgentClient.keep`."""
        return self._request("POST", "/kept", KeptListed, request)

    def remove(self, resources: ResourceIds) -> None:
        """As `AsyncAgentClient.remove`."""
        self._request("POST", "/removal", NoneType, resources)

    def lingering(self) -> LingerListed:
        """Return the time for which the agent lingers after its last client."""
        return self._request("GET", "/linger", LingerListed)

    def end_lingering(self) -> LingerListed:
        """Make the agent exit without lingering, at once or with its last client; return the previous setting."""
        return self._request("DELETE", "/linger", LingerListed)

    def volumes(self) -> list[VolumeListed]:
        return self._request("GET", "/volumes", list[VolumeListed])

    def departure(self, client: str) -> Departed:
        """Wait until everything that a client owned is released, after it has closed its lifeline."""
        return self._request("GET", f"/clients/{client}/departure", Departed)

    def _request(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        content = None if body is None else msgspec.json.encode(body)
        endpoint = Endpoint(base_url=BASE_URL, uds=self.socket)
        headers = {CLIENT_HEADER: self._client}
        try:
            answer = request(endpoint, method, path, content=content, headers=headers, timeout_s=ANSWER_TIMEOUT_S)
        except OSError as error:
            raise self._decoder.lost(error) from None
        return self._decoder.result(answer, kind, f"{method} {path}")


def running_agents(base: Path, *, run: str | None = None) -> Iterator[AgentClient]:
    """Return this user's running agents that respond; only those of one run, if given."""
    for found in survey(base):
        if found.is_alive and found.contents and run in (None, found.contents.header.run):
            header = found.contents.header
            agent = AgentClient(found.directory / SOCKET_NAME, process=header.agent, may_linger=header.lingers)
            if agent.answers():
                yield agent
