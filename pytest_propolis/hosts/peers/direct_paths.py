"""The direct paths from one host's agent to those of other hosts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ...agent_api.messages import AcceptPeer, ConnectPeer
from ...errors import AgentError, HostLost
from ..host import Host

__all__ = ["DirectPaths"]

logger = logging.getLogger(__name__)

Links = tuple[Path, Path]


class DirectPaths:
    """Remembers, for each other host, the socket that leads there, or that there is none.

    :param host: the name of the host whose paths they are.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._paths: dict[tuple[str, Links], str | None] = {}

    async def to(self, other: Host, *, own: Host, links: Links) -> str | None:
        """Return the socket on the own host that leads to the agent of another one; None if it cannot be reached.

        :param own: the host whose paths they are.
        :param links: the local sockets of both agents: a path lasts as long as both connections from here.
        """
        key = (other.name, links)
        if key not in self._paths:
            self._paths[key] = await self._connect(other, own)
        return self._paths[key]

    async def _connect(self, other: Host, own: Host) -> str | None:
        from .identity import new_identity  # imported only where hosts are connected

        identity = await asyncio.to_thread(new_identity)
        try:
            async with await own.client() as near, await other.client() as far:
                accepted = await far.accept_peer(AcceptPeer(identity=identity))
                connect = ConnectPeer(address=accepted.address, port=accepted.port, identity=identity)
                return await near.connect_peer(connect)
        except HostLost:
            raise
        except AgentError as error:
            logger.warning(
                "%s does not reach %s, and what goes there goes through this machine: %s",
                self._host,
                other.name,
                error.message,
            )
            return None
