"""A group of nodes of a run, in the store that the settings name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable

from ..hosts.host import Host
from .backends.backend import Backend
from .backends.embedded import EmbeddedBackend
from .backends.etcd.address import EtcdAddress
from .backends.etcd.backend import EtcdBackend
from .group import NodeGroup

__all__ = ["opened_group"]

EMBEDDED = "embedded"


@contextlib.asynccontextmanager
async def opened_group(store: str, name: str, *, run: str, host: Callable[[], Host]) -> AsyncIterator[NodeGroup]:
    """Open the group of a name for as long as the block takes.

    :param store: ``embedded``, or the address of etcd.
    :param run: the id of the run, by which its keys in etcd are apart from those of other runs.
    :param host: returns the host whose agent serves the embedded store.
    """
    async with contextlib.AsyncExitStack() as stack:
        if store == EMBEDDED:
            backend = await _embedded(stack, host())
        else:
            address = EtcdAddress.parse(store)
            backend = EtcdBackend(dataclasses.replace(address, prefix=f"{address.prefix}/{run}"))
        stack.push_async_callback(backend.aclose)
        async with await NodeGroup.open(backend, name) as group:
            yield group


async def _embedded(stack: contextlib.AsyncExitStack, host: Host) -> Backend:
    agent = await stack.enter_async_context(await host.client())
    return await EmbeddedBackend.connect(agent.endpoint(""))
