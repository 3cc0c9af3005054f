"""A living agent, asked without an event loop: by commands, and by pytest between two tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar

import msgspec

from ..agent_api.messages import (
    CLIENT_HEADER,
    SOCKET_NAME,
    Departed,
    Fault,
    Keep,
    KeptListed,
    ResourceIds,
    VmListed,
    VolumeListed,
)
from ..errors import AgentError
from ..ledger.identity import ProcessIdentity
from ..ledger.survey import survey

__all__ = ["AgentClient", "running_agents"]

T = TypeVar("T")

ANSWER_TIMEOUT_S: Final = 15.0
"""An agent answers at once, or when VMs have ended, which takes seconds at most."""


class AgentClient:
    """One agent behind its socket. Making this connects to nothing.

    Every method raises `AgentError` when the agent does not answer, or what it reports.

    :param client: whom requests come from, where that matters.
    :param process: the agent itself, where that is known.
    """

    def __init__(self, socket: Path, *, client: str = "", process: ProcessIdentity | None = None) -> None:
        self.socket = socket
        self.process = process
        self._client = client

    def answers(self) -> bool:
        """Whether it does: one that is only starting, or about to leave, does not."""
        try:
            self.vms()
        except AgentError:
            return False
        return True

    def vms(self) -> list[VmListed]:
        return self._ask("GET", "/vms", list[VmListed])

    def volumes(self) -> list[VolumeListed]:
        return self._ask("GET", "/volumes", list[VolumeListed])

    def kept(self) -> list[KeptListed]:
        return self._ask("GET", "/kept", list[KeptListed])

    def release_kept(self) -> list[KeptListed]:
        """Have the agent remove all that it keeps; returns what that was, when it is gone."""
        return self._ask("DELETE", "/kept", list[KeptListed])

    def keep(self, request: Keep) -> KeptListed:
        """As `AsyncAgentClient.keep`."""
        return self._ask("POST", "/kept", KeptListed, request)

    def remove(self, belongings: ResourceIds) -> None:
        """As `AsyncAgentClient.remove`."""
        self._ask("POST", "/removal", NoneType, belongings)

    def departure(self, client: str) -> Departed:
        """Wait until all that a client owned is released, after it has closed its lifeline."""
        return self._ask("GET", f"/clients/{client}/departure", Departed)

    def _ask(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        import httpx  # only where there is an agent to ask

        content = None if body is None else msgspec.json.encode(body)
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False, trust_env=False)
        try:
            with httpx.Client(transport=transport, timeout=ANSWER_TIMEOUT_S, base_url="http://agent") as http:
                answer = http.request(method, path, content=content, headers={CLIENT_HEADER: self._client})
        except httpx.TransportError as error:
            raise AgentError(
                f"the agent behind {self.socket} does not answer: {error or type(error).__name__}",
                hint=f"its log is {self.socket.with_name('agent.log')}",
            ) from None
        if answer.status_code == 422:
            raise msgspec.json.decode(answer.content, type=Fault).to_error()
        if answer.is_error:
            raise AgentError(f"the agent answered {answer.status_code} to {method} {path}: {answer.text}")
        return msgspec.json.decode(answer.content or b"null", type=kind)


def running_agents(base: Path, *, run: str | None = None) -> Iterator[AgentClient]:
    """The agents of this user that live and answer; of one run, if that is given."""
    for found in survey(base):
        if found.is_alive and found.contents and run in (None, found.contents.header.run):
            agent = AgentClient(found.directory / SOCKET_NAME, process=found.contents.header.agent)
            if agent.answers():
                yield agent
