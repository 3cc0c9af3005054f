"""Lingering: an agent stays for a while after its last client, for the next run to connect to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..agent_api.agent_process import LINGER_HEADER, AgentConfig, LingerListed
from ..engine.server.app import encoded
from ..ledger.ledger import LEDGER_NAME
from .hypervisor import HypervisorFinder
from .installation import Installation

__all__ = ["Lingering"]

MOST_LEDGER_BYTES: Final = 1 << 20
"""An agent whose ledger has grown beyond this is replaced: every inspection of a run reads the whole ledger."""


class Lingering:
    """Decides how long an agent without clients stays, and whether it may serve another run.

    Only an agent that was started to linger does so: one that serves a run without this option exits with it.

    :param over: called when the time is over, or the wait is cut short.
    """

    def __init__(self, config: AgentConfig, hypervisors: HypervisorFinder, *, over: Callable[[], None]) -> None:
        self._hypervisors = hypervisors
        self._over = over
        self._ledger = Path(config.directory) / LEDGER_NAME
        self._installation = Installation() if config.lingers else None
        self._seconds = 0.0
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_ended = False

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/linger", self._list, methods=["GET"]),
            Route("/linger", self._end, methods=["DELETE"]),
        ]

    @property
    def is_wanted(self) -> bool:
        """Whether the agent stays without clients, now or after the last one has left."""
        return self._seconds > 0

    def join(self, request: Request) -> None:
        """Record the duration that a client requests with its lifeline: the latest one decides."""
        self._cancel()
        if self._installation and not self._has_ended:
            self._seconds = float(request.headers.get(LINGER_HEADER, 0))

    def begin(self) -> bool:
        """Start waiting for the next client, unless already waiting; return False if the agent need not stay."""
        if self._seconds > 0 and self._timer is None:
            self._until = time.time() + self._seconds
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        return self._seconds > 0

    def stop(self) -> None:
        """Make the agent exit with its last client, even if later clients request otherwise."""
        self._has_ended = True
        self._expire()

    def is_outdated(self) -> bool:
        """Return whether a new run should get a new agent: this one's code or QEMU has changed, or its ledger is long.

        It checks several hundred files.
        """
        return self._installation is not None and (
            self._has_ended
            or self._hypervisors.has_changed()
            or self._installation.has_changed()
            or self._ledger.stat().st_size > MOST_LEDGER_BYTES
        )

    def close(self) -> None:
        """Stop waiting. Idempotent."""
        self._seconds = 0.0
        self._cancel()

    def _expire(self) -> None:
        self.close()
        self._over()

    def _cancel(self) -> None:
        self._until = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _listed(self) -> LingerListed:
        return LingerListed(seconds=self._seconds, until=self._until)

    async def _list(self, _request: Request) -> Response:
        return encoded(self._listed())

    async def _end(self, _request: Request) -> Response:
        """Respond with the previous setting."""
        before = self._listed()
        self.stop()
        return encoded(before)
