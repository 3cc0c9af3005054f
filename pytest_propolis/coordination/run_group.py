"""The group of nodes of a run, in the store that the agent of a host serves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from ..hosts.host import Host
from .backends.embedded import EmbeddedBackend
from .group import NodeGroup

__all__ = ["group_on"]


@contextlib.asynccontextmanager
async def group_on(host: Host, name: str) -> AsyncIterator[NodeGroup]:
    """Open the group of a name in the store of a host's agent, for as long as the block takes."""
    async with (
        await host.client() as agent,
        contextlib.aclosing(await EmbeddedBackend.connect(agent.endpoint(""))) as store,
        await NodeGroup.open(store, name) as group,
    ):
        yield group
