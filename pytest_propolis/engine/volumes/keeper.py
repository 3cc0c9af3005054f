"""Keeping one replica: connect to it, watch it, leave it out when it is lost, and begin again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from ...propolis_api import DownstairsInfoConnectionMode
from ..qemu.monitor import MachineError
from .negotiation import Promote
from .replica import Phase, Replica
from .replica_set import ReplicaSet
from .session import DownstairsRefused, DownstairsUnreachable, Session

__all__ = ["ReplicaKeeper", "TakenOver"]

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.1
REFUSED_RETRY_S: Final = 1.0
LONGEST_PAUSE_S: Final = 5.0
HEARTBEAT_S: Final = 0.5
HUNG_S: Final = 5.0
"""A downstairs that has not answered for so long is left out. The guest's requests wait for it meanwhile."""


class TakenOver(Exception):
    """Raised when another upstairs has the volume now."""

    def __init__(self, generation: int) -> None:
        super().__init__(f"generation {generation} has taken over")


class ReplicaKeeper:
    """Keeps one of a set's replicas.

    :param promotion: what to ask of its downstairs, at any time.
    """

    def __init__(self, replicas: ReplicaSet, replica: Replica, promotion: Callable[[], Promote]) -> None:
        self._set = replicas
        self._replica = replica
        self._promotion = promotion
        self._pause_s = RETRY_S

    async def run(self) -> None:
        """Do so until cancelled.

        :raises TakenOver: when another upstairs has the volume.
        :raises DownstairsRefused: when the downstairs refuses before the volume was up for the first time.
        """
        while True:
            session = await self._connect()
            await self._keep(session)

    async def _connect(self) -> Session:
        replica = self._replica
        while True:
            replica.moved.clear()
            attempt = asyncio.create_task(Session.open(replica.address, self._promotion()))
            moved = asyncio.create_task(replica.moved.wait())
            try:
                await asyncio.wait([attempt, moved], return_when=asyncio.FIRST_COMPLETED)
                if attempt.done() and not moved.done() and (session := await self._outcome(attempt)):
                    return session
            finally:
                moved.cancel()
                await _abandon(attempt, unless=replica.session)

    async def _outcome(self, attempt: asyncio.Task[Session]) -> Session | None:
        replica, pause_s = self._replica, RETRY_S
        try:
            session = attempt.result()
        except DownstairsUnreachable as error:
            logger.debug("replica: %s", error)
        except DownstairsRefused as error:
            if not self._set.is_assembled:
                raise
            if error.generation is not None and error.generation > self._promotion().generation:
                raise TakenOver(error.generation) from None
            logger.warning("replica: %s", error)
            pause_s = REFUSED_RETRY_S
        else:
            replica.session, replica.phase = session, Phase.CONNECTED
            self._set.notify()
            return session
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await replica.moved.wait()
        return None

    async def _keep(self, session: Session) -> None:
        replica = self._replica
        replica.lost = None
        replica.alarm.clear()
        session.when_ended(replica.alarm.set)
        joining = asyncio.create_task(self._set.take_in(replica))
        joining.add_done_callback(lambda _: replica.alarm.set())
        try:
            reason, mode = await self._lost(session, joining)
            logger.warning("replica %s is left out: %s", session.address, reason)
            session.close()
            self._set.notify()
            await self._set.cut(replica)
            # Nothing waits for it any more. It must not be cancelled, for it changes QEMU's nodes.
            await asyncio.wait([joining])
        except BaseException:
            session.close()
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            raise
        joining.exception()
        await self._set.leave_out(replica, mode)
        if session.fenced_by is not None:
            raise TakenOver(session.fenced_by)

    async def _lost(self, session: Session, joining: asyncio.Task[None]) -> tuple[str, DownstairsInfoConnectionMode]:
        """Wait until the replica is unusable; return the reason, and its new state."""
        modes, replica = DownstairsInfoConnectionMode, self._replica
        while True:
            if replica.moved.is_set():
                return "it is replaced", modes.REPLACED
            if session.ended.is_set():
                return "it has hung up", modes.OFFLINE
            if replica.lost is not None:
                return replica.lost, modes.FAULTED
            if replica.is_active:
                self._pause_s = RETRY_S
            if joining.done() and (error := joining.exception()):
                if not isinstance(error, MachineError | DownstairsUnreachable | DownstairsRefused):
                    raise error
                await self._back_off()
                return f"it cannot be brought up to date: {error}", modes.FAULTED
            replica.alarm.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await replica.alarm.wait()
            except TimeoutError:
                try:
                    await session.check(timeout_s=HUNG_S)
                except DownstairsUnreachable as error:
                    return str(error), modes.OFFLINE

    async def _back_off(self) -> None:
        """Wait longer from failure to failure: a repair that cannot succeed must not keep the others busy."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s):
                await self._replica.moved.wait()
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


async def _abandon(attempt: asyncio.Task[Session], *, unless: Session | None) -> None:
    """Abandon an attempt to connect, and close its connection."""
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not unless:
        attempt.result().close()
