"""A small HTTP service in a process with another main purpose, such as a test or a server of VMs.

It is uvicorn's protocol without uvicorn's server: that one logs what it does, where users' logs are, and takes a moment
to notice that it is to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from .http_protocol import CoalescingProtocol

__all__ = ["serving"]

END_TIMEOUT_S: Final = 1.0
"""How long requests that are served may take at the end."""


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve an application at a socket that listens, for the length of the block. The socket is closed at its end."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: CoalescingProtocol(config=config, server_state=state, app_state={}), sock=listener
    )
    try:
        yield
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            _, late = await asyncio.wait(state.tasks, timeout=END_TIMEOUT_S)
            for task in late:
                task.cancel()
