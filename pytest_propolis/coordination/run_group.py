"""A group of nodes of a run, in the store that the settings name."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from ..hosts.host import Host
from .backends.address import connect_store, etcd_store, socket_address
from .group import NodeGroup

__all__ = ["opened_group"]

EMBEDDED: Final = "embedded"


@contextlib.asynccontextmanager
async def opened_group(store: str, name: str, *, run: str, host: Callable[[], Host]) -> AsyncIterator[NodeGroup]:
    """Open the group of a name for as long as the block takes.

    :param store: ``embedded``, or the address of a store.
    :param run: the id of the run, by which its groups are apart from those of other runs.
    :param host: returns the host whose agent serves the embedded store.
    """
    async with contextlib.AsyncExitStack() as stack:
        if store == EMBEDDED:
            agent = await stack.enter_async_context(await host().client())
            address = socket_address(agent.socket)
        else:
            address = etcd_store(store, below=run) if store.startswith("etcd") else store
            name = name if store.startswith("etcd") else f"{run}-{name}"
        backend = await connect_store(address)
        stack.push_async_callback(backend.aclose)
        async with await NodeGroup.open(backend, name) as group:
            group.address = f"{address}#{name}"
            yield group
