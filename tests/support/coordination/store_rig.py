"""The embedded store as the agent serves it, on a UNIX socket, in the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from pytest_propolis.agent.coordination.service import CoordinationService
from pytest_propolis.coordination.backends.backend import Backend
from pytest_propolis.propolis_api.connection.endpoint import Endpoint

__all__ = ["Connect", "served_store"]

Connect = Callable[[], Awaitable[Backend]]
"""Connects to a store, as one process does."""


@contextlib.asynccontextmanager
async def served_store() -> AsyncIterator[Endpoint]:
    service = CoordinationService()
    with tempfile.TemporaryDirectory(prefix="p-", dir="/tmp") as directory:
        socket = Path(directory) / "store.sock"
        app = Starlette(routes=list(service.routes))
        config = uvicorn.Config(
            app, uds=str(socket), log_config=None, lifespan="off", ws="websockets-sansio", ws_ping_interval=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve())
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield Endpoint(base_url="http://agent", uds=socket)
        finally:
            service.close()
            server.should_exit = True
            await serving
