"""Fixtures for both stores."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from etcd_rig import etcd_cluster
from store_rig import Connect, served_store

from pytest_propolis.coordination.backends.backend import Backend
from pytest_propolis.coordination.backends.embedded import EmbeddedBackend
from pytest_propolis.coordination.backends.etcd.backend import EtcdBackend


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["embedded", "etcd"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Connects to a store that all tests of the module share; each connection is as one process has it."""
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "embedded":
            endpoint = await stack.enter_async_context(served_store())

            async def connected() -> Backend:
                store = await EmbeddedBackend.connect(endpoint)
                stack.push_async_callback(store.aclose)
                return store
        else:
            cluster = await stack.enter_async_context(etcd_cluster())

            async def connected() -> Backend:
                store = EtcdBackend(cluster.address)
                stack.push_async_callback(store.aclose)
                return store

        yield connected
