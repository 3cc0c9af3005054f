"""The public state of a VM: published with a generation number, awaited by long polls.

As propolis-server's ``state-monitor``: generations start at 1, each publication adds one, an observer that asks for a
generation that has been reached is answered at once, and intermediate states may be skipped by slow observers.
"""

from __future__ import annotations

import asyncio

from ..propolis_api import InstanceMigrateStatusResponse, InstanceState, InstanceStateMonitorResponse

__all__ = ["PublisherGone", "StatePublisher"]


class PublisherGone(Exception):
    """Raised in observers when the VM was run down, and nothing will be published any more."""


class StatePublisher:
    """What the outside sees of one VM, from ensure to rundown."""

    def __init__(self, initial: InstanceState) -> None:
        self._gen = 1
        self._state = initial
        self._migration = InstanceMigrateStatusResponse()
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def state(self) -> InstanceState:
        return self._state

    def snapshot(self) -> InstanceStateMonitorResponse:
        return InstanceStateMonitorResponse(gen=self._gen, migration=self._migration, state=self._state)

    def publish(self, state: InstanceState) -> None:
        self._state = state
        self._gen += 1
        self._wake()

    def close(self) -> None:
        """Answer every observer that still waits with `PublisherGone`."""
        self._closed = True
        self._wake()

    async def wait_for(self, gen: int) -> InstanceStateMonitorResponse:
        """Wait until generation `gen` has been published; no time limit.

        :raises PublisherGone: when the VM is run down before.
        """
        while self._gen < gen:
            if self._closed:
                raise PublisherGone
            await self._changed.wait()
        return self.snapshot()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
