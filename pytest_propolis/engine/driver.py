"""The state driver: one task per VM that takes what the guest does first, and what clients request then.

The sequences that it publishes are propolis-server's: ``Starting → Running``, ``Rebooting → Running``,
``Stopping → Stopped``, and, once everything is released, ``Destroyed`` or ``Failed`` (published by `VmServer`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import Enum

from ..propolis_api import InstanceState
from .machine import GuestEvent, Machine, MachineError
from .publisher import StatePublisher
from .request_queue import MigrateAsSource, Reboot, ReplaceVolume, Request, RequestQueue, Run, Stop

__all__ = ["Outcome", "StateDriver"]

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """How a VM's life ended."""

    DESTROYED = "destroyed"
    FAILED = "failed"


class StateDriver:
    """Drives one machine from Creating to its end."""

    def __init__(self, *, queue: RequestQueue, publisher: StatePublisher) -> None:
        self._queue = queue
        self._publisher = publisher
        self._events: deque[GuestEvent] = deque()
        self._work = asyncio.Event()

    def guest_did(self, event: GuestEvent) -> None:
        """Hear of something that the guest did. Called by the machine, in the event loop."""
        self._events.append(event)
        self._work.set()

    def request(self, request: Request) -> None:
        """Queue a client's request.

        :raises RequestDenied: as the table of the request queue says.
        """
        self._queue.enqueue(request)
        self._work.set()

    async def run(self, machine: Machine) -> Outcome:
        """Drive until the VM's life ends. The machine is the caller's to close."""
        outcome = None
        try:
            while outcome is None:
                outcome = await self._step(machine)
        finally:
            self._queue.failed()  # no effect on a queue that has ended
        return outcome

    async def _step(self, machine: Machine) -> Outcome | None:
        try:
            if self._events:
                return await self._handle_event(self._events.popleft())
            request = self._queue.pop()
            if request is not None:
                return await self._handle_request(request, machine)
        except MachineError as error:
            logger.warning("the VM fails: %s", error)
            return Outcome.FAILED
        self._work.clear()
        await self._work.wait()
        return None

    async def _handle_event(self, event: GuestEvent) -> Outcome | None:
        match event:
            case GuestEvent.RESET:
                with self._queue.rebooting():
                    self._publisher.publish(InstanceState.REBOOTING)
                self._publisher.publish(InstanceState.RUNNING)
            case GuestEvent.SHUTDOWN:
                self._queue.halting()
                return self._stop()
            case GuestEvent.EXITED:
                logger.warning("QEMU ended by itself")
                return Outcome.FAILED
            case GuestEvent.PANICKED:
                logger.warning("the guest panicked")
        return None

    async def _handle_request(self, request: Request, machine: Machine) -> Outcome | None:
        match request:
            case Run():
                self._publisher.publish(InstanceState.STARTING)
                await machine.resume()
                self._queue.started()
                self._publisher.publish(InstanceState.RUNNING)
            case Reboot():
                with self._queue.rebooting():
                    self._publisher.publish(InstanceState.REBOOTING)
                    await machine.reset()
                self._publisher.publish(InstanceState.RUNNING)
            case Stop():
                return self._stop()
            case MigrateAsSource() | ReplaceVolume():
                raise AssertionError(f"{request} is refused before it is queued")
        return None

    def _stop(self) -> Outcome:
        self._publisher.publish(InstanceState.STOPPING)
        self._queue.stopped()
        self._publisher.publish(InstanceState.STOPPED)
        return Outcome.DESTROYED
