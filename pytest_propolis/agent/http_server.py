"""The HTTP server of an agent, and of a server program: uvicorn, whose caller has its own signal handlers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from ..propolis_api.connection.http_protocol import CoalescingProtocol

__all__ = ["http_server"]


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server of an application, which serves once `serve` is called with its sockets."""
    return _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            http=CoalescingProtocol,
            ws="websockets-sansio",
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=1,
        )
    )
