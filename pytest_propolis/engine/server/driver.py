"""The state driver: one task per VM that handles guest events first, and then client requests.

The sequences that it publishes are propolis-server's: ``Starting → Running``, ``Rebooting → Running``,
``Stopping → Stopped``, and, once everything is released, ``Destroyed`` or ``Failed`` (published by `VmServer`). A VM
that comes from another host goes from ``Migrating`` to ``Running``, one that leaves from ``Migrating`` to ``Stopping``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, Final, TypeVar

from ...propolis_api import InstanceState
from ..qemu.guest_events import GuestEvent
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from ..request_queue import (
    MigrateAsSource,
    MigrationOut,
    QueueState,
    Reboot,
    ReplaceVolume,
    Request,
    RequestQueue,
    Run,
    Stop,
)
from ..volumes.block_backend import BackendError, BlockBackends, Reply, VolumeGone
from .publisher import StatePublisher

__all__ = ["Arrive", "MigrateOut", "Outcome", "StateDriver"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

LAST_WORDS_S: Final = 5.0
ENDS: Final = (GuestEvent.SHUTDOWN, GuestEvent.EXITED, GuestEvent.DISK_FAILED, GuestEvent.DISK_LOST)

Arrive = Callable[[Machine], Awaitable[None]]
"""Migrates a guest from another host into a prepared machine, up to its first instruction here. It is cancelled if the
VM is stopped meanwhile. If it raises, the VM fails."""

MigrateOut = Callable[[Machine, MigrateAsSource, MigrationOut], Awaitable[None]]
"""Migrates the guest to another host. Unless it records in the `MigrationOut` that the guest was handed over, the guest
must be running here again when it returns. If it raises, the VM fails."""


class Outcome(Enum):
    """The way in which a VM ended."""

    DESTROYED = "destroyed"
    FAILED = "failed"


class StateDriver:
    """Drives one machine from its creation to its end.

    :param backends: the block backends that must be up before the guest runs. The caller closes them.
    :param arrive: receives the guest of a VM that migrates in. The publisher then starts with Migrating, and the queue
        with ``migrating_in``.
    :param migrate_out: serves requests to migrate out. Without it, there must not be any.
    """

    def __init__(
        self,
        *,
        queue: RequestQueue,
        publisher: StatePublisher,
        backends: BlockBackends,
        arrive: Arrive | None = None,
        migrate_out: MigrateOut | None = None,
    ) -> None:
        self._queue = queue
        self._publisher = publisher
        self._backends = backends
        self._arrive = arrive
        self._migrate_out = migrate_out
        self._events: deque[GuestEvent] = deque()
        self._work = asyncio.Event()
        self.failure: str | None = None
        """Why a block backend could not be brought up."""
        self.resets = 0
        """How often the machine was reset, by a client or by its guest."""

    def guest_did(self, event: GuestEvent) -> None:
        """Handle a guest event. Called by the machine, in the event loop."""
        self._events.append(event)
        self._work.set()

    def request(self, request: Request) -> None:
        """Queue a client's request.

        :raises RequestDenied: as the table of the request queue says.
        """
        self._queue.enqueue(request)
        self._work.set()

    async def run(self, machine: Machine) -> Outcome:
        """Run until the VM ends. The caller closes the machine."""
        outcome = None
        try:
            if self._arrive is not None:
                await self._migrate_in(machine, self._arrive)
            while outcome is None:
                outcome = await self._step(machine)
        except (MachineError, BackendError) as error:
            logger.warning("the VM fails: %s", error)
            self.failure = str(error)
            outcome = Outcome.FAILED
        except Exception:
            logger.exception("the VM fails unexpectedly")
            outcome = Outcome.FAILED
        finally:
            self._queue.failed()  # no effect on a queue that has ended
        return outcome

    async def _step(self, machine: Machine) -> Outcome | None:
        if self._events:
            return self._handle_event(self._events.popleft())
        request = self._queue.pop()
        if request is not None:
            return await self._handle_request(request, machine)
        await self._wait_for_work()
        return None

    def _handle_event(self, event: GuestEvent) -> Outcome | None:
        match event:
            case GuestEvent.RESET:
                self.resets += 1
                with self._queue.rebooting():
                    self._publisher.publish(InstanceState.REBOOTING)
                self._publisher.publish(InstanceState.RUNNING)
            case GuestEvent.SHUTDOWN:
                self._queue.halting()
                return self._stop()
            case GuestEvent.EXITED:
                logger.warning("QEMU ended by itself")
                return Outcome.FAILED
            case GuestEvent.DISK_FAILED:
                logger.warning("QEMU stopped the guest: a disk could not be written")
                return Outcome.FAILED
            case GuestEvent.DISK_LOST:
                logger.warning("a disk of the VM is lost")
                return Outcome.FAILED
            case GuestEvent.PANICKED:
                logger.warning("the guest panicked")
        return None

    async def _handle_request(self, request: Request, machine: Machine) -> Outcome | None:
        match request:
            case Run():
                self._publisher.publish(InstanceState.STARTING)
                await self._start(machine)
            case Reboot():
                await self._reboot(machine)
            case Stop():
                return self._stop()
            case MigrateAsSource():
                return await self._leave(machine, request)
            case ReplaceVolume():
                await self._replace(request)
        return None

    async def _reboot(self, machine: Machine) -> None:
        with self._queue.rebooting():
            self._publisher.publish(InstanceState.REBOOTING)
            if not await self._unless_stopped(machine.reset()):
                return
            self.resets += 1
        self._publisher.publish(InstanceState.RUNNING)

    def _stop(self) -> Outcome:
        # A VM that has not started is not brought down, only dropped: as propolis-server, it is Stopped at once.
        if self._queue.state is not QueueState.StartPending:
            self._publisher.publish(InstanceState.STOPPING)
        self._queue.stopped()
        self._publisher.publish(InstanceState.STOPPED)
        return Outcome.DESTROYED

    # Starting

    async def _start(self, machine: Machine) -> None:
        """Start the block backends, and then the guest. Abort if a stop is requested."""
        async with _in_background(self._backends.start(machine)) as start:
            if not await self._is_done(start, replacing=True):
                return
            await start
        if not await self._unless_stopped(machine.resume()):
            return
        self._queue.started()
        self._publisher.publish(InstanceState.RUNNING)

    async def _migrate_in(self, machine: Machine, arrive: Arrive) -> None:
        async with _in_background(arrive(machine)) as arrival:
            if not await self._is_done(arrival) and not self._queue.awaiting_stop:
                # QEMU has ended: the source may still say why.
                await asyncio.wait([arrival], timeout=LAST_WORDS_S)
            if not arrival.done():
                return
            await arrival
        await self._start(machine)

    async def _is_done(
        self, work: asyncio.Task[Any], *, replacing: bool = False, unless: Callable[[], bool] | None = None
    ) -> bool:
        """Wait until the work is done (True), or there is a reason to abort it (False).

        :param replacing: whether to replace volumes meanwhile.
        :param unless: returns whether there is such a reason; by default, whether the VM is to end.
        """
        unless = unless or self._is_ending
        work.add_done_callback(lambda _: self._work.set())
        await asyncio.sleep(0)  # what needs no waiting is done first
        while not work.done() and not unless():
            change = self._queue.pop_component_change() if replacing else None
            if change is not None:
                await self._replace(change)
            else:
                await self._wait_for_work()
        return work.done()

    def _is_ending(self) -> bool:
        return self._queue.awaiting_stop or any(event in ENDS for event in self._events)

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """Run a QEMU operation (True), or abort it if a stop is requested (False): QEMU may be frozen."""
        async with _in_background(work) as doing:
            if not await self._is_done(doing, unless=lambda: self._queue.awaiting_stop):
                return False
            await doing
        return True

    async def _wait_for_work(self) -> None:
        self._work.clear()
        await self._work.wait()

    # Replacing volumes

    async def _replace(self, change: ReplaceVolume) -> None:
        """Serve the request, unless a stop is requested before the backend has responded."""
        reply = change.reply
        assert isinstance(reply, asyncio.Future)
        try:
            async with _in_background(self._backends.replace(change)) as replacement:
                await self._is_done(replacement)
        finally:
            _answer(reply, replacement)

    # Migrating out

    async def _leave(self, machine: Machine, request: MigrateAsSource) -> Outcome | None:
        assert self._migrate_out is not None, "a migration was requested, and there is nothing to serve it"
        with self._queue.migrating_out() as migration:
            self._publisher.publish(InstanceState.MIGRATING)
            await self._migrate_out(machine, request, migration)
        if migration.handed_over:
            self._publisher.publish(InstanceState.STOPPING)
            return Outcome.DESTROYED
        self._publisher.publish(InstanceState.RUNNING)
        return None


@asynccontextmanager
async def _in_background(work: Awaitable[T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run a task in the background, and cancel it at the end of the block."""
    task = asyncio.create_task(_coroutine(work))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _coroutine(work: Awaitable[T]) -> T:
    return await work


def _answer(reply: Reply, replacement: asyncio.Task[Any]) -> None:
    if reply.done():  # the requester has disconnected
        return
    if replacement.cancelled():
        reply.set_exception(VolumeGone())
    elif error := replacement.exception():
        reply.set_exception(error)
    else:
        reply.set_result(replacement.result())
    reply.exception()  # the requester may be about to disconnect
