"""The replicas of one region, and those that QEMU uses: good ones are added, bad ones removed.

Each time that the set of replicas with all writes changes, those that have them are told the next *epoch*, which they
remember. So when a volume is brought up, those of the highest epoch are the ones to believe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from ...propolis_api import DownstairsInfoConnectionMode
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from .negotiation import Promoted
from .quorum import Quorum
from .replica import Phase, Replica
from .session import DownstairsRefused, DownstairsUnreachable, Session

__all__ = ["NEEDED", "ReplicaSet"]

logger = logging.getLogger(__name__)

RECORD_CLEAN_TIMEOUT_S: Final = 3.0
NEEDED: Final = 2
"""How many replicas must have a write before it is done."""


class ReplicaSet:
    """Changes to QEMU's nodes are made here, one at a time.

    :param addresses: of the downstairs.
    """

    def __init__(self, quorum: Quorum, addresses: Sequence[str]) -> None:
        self.quorum = quorum
        self.replicas = tuple(
            Replica(address=address, node=node) for address, node in zip(addresses, quorum.placeholders, strict=True)
        )
        self.is_assembled = False
        self._machine: Machine | None = None
        self._epoch = 0
        self._is_held = False
        """No repair may begin."""
        self._is_frozen = False
        """QEMU's nodes may not change at all."""
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def active(self) -> list[Replica]:
        """The replicas that have all writes and that QEMU uses."""
        return [replica for replica in self.replicas if replica.is_active]

    @property
    def is_in_repair(self) -> bool:
        """Whether QEMU copies to a replica while the guest runs."""
        return bool(self._in_repair)

    @property
    def _in_repair(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.phase is Phase.LIVE_REPAIR]

    @property
    def regions(self) -> list[Promoted]:
        """The regions of the connected downstairs."""
        return [replica.session.region for replica in self.replicas if replica.session]

    @property
    def all_connected(self) -> bool:
        return all(replica.session and not replica.session.ended.is_set() for replica in self.replicas)

    def notify(self) -> None:
        """Something has changed that `wait_until` may wait for."""
        self._changed.set()
        self._changed.clear()

    async def wait_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.wait()

    async def assemble(self, machine: Machine) -> None:
        """Give QEMU the replicas, all connected, when those that count have been made equal.

        :raises DownstairsUnreachable: when one does not answer QEMU in time. It can be tried again.
        :raises MachineError: when QEMU does not take them. It can be tried again.
        """
        async with self._changing:
            self._machine = machine
            newest = max(_session(replica).region.epoch for replica in self.replicas)
            fresh = [replica for replica in self.replicas if _session(replica).region.epoch == newest]
            for replica in self.replicas:
                replica.is_stale = replica not in fresh
            nodes: dict[Replica, str] = {}
            try:
                await self._equalise(fresh, nodes)
            except BaseException:
                for replica, node in nodes.items():
                    replica.phase = Phase.CONNECTED
                    await self.quorum.detach(machine, node)
                raise
            finally:
                for replica in nodes:
                    replica.incoming = None
            for replica, node in nodes.items():
                await self._put_in(replica, node)
            self._epoch = newest
            await self._begin_epoch()
            self.is_assembled = True
        self.notify()

    async def take_in(self, replica: Replica) -> None:
        """Make a replica that is connected part of the volume again, when that can be; up to date first.

        :raises DownstairsUnreachable: when its session ends before.
        :raises DownstairsRefused: when another upstairs has taken over.
        :raises MachineError: when it cannot be brought up to date.
        """
        session = _session(replica)
        await self.wait_until(lambda: self.is_assembled or session.ended.is_set())
        while not replica.is_active:
            async with self._changing:
                if session.ended.is_set():
                    raise DownstairsUnreachable(f"{replica.address} has hung up")
                if not self._is_held and (self.active or not replica.is_stale):
                    await self._fill(replica, session)
                    break
            await self.wait_until(lambda: (self.active and not self._is_held) or session.ended.is_set())
        self.notify()

    async def cut(self, replica: Replica) -> None:
        """Stop QEMU's waiting for a replica, also while another change waits for the same replica."""
        if self._machine is not None:
            for node in {replica.node, replica.incoming or replica.node}:
                await self.quorum.yank(self._machine, node)
            # What is copied just now needs all replicas that are there. A job with nothing to do would not learn it.
            await self.quorum.give_up_job(self._machine)

    async def leave_out(self, replica: Replica, mode: DownstairsInfoConnectionMode) -> None:
        """Go on without a replica whose session has ended."""
        await self.wait_until(lambda: not self._is_frozen)
        async with self._changing:
            was_active, replica.phase = replica.is_active, Phase.WAIT_CONNECT
            replica.session, replica.mode = None, mode
            if self._machine is not None and was_active:
                with contextlib.suppress(MachineError):  # QEMU has ended
                    node = await self.quorum.add_placeholder(self._machine)
                    await self.quorum.swap(self._machine, old=replica.node, new=node)
                    replica.node = node
            if was_active and len(self.active) >= NEEDED:
                # The guest goes on. Below that number it does not: then the replica misses nothing.
                replica.is_stale = True
                await self._begin_epoch()
        self.notify()

    async def record_clean(self, *, clean: bool) -> None:
        """Record at the replicas that no write is in progress and none will follow, or that this no longer holds.

        Until then no replica is repaired: a repair that is under way is given up. QEMU must be stopped.
        """
        self._is_held = clean
        self._is_frozen = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECORD_CLEAN_TIMEOUT_S):
                if clean:
                    await self._give_up_repairs()
                await self._record_epoch(clean=clean)
        self._is_frozen = clean
        self.notify()

    async def _give_up_repairs(self) -> None:
        given_up = [(replica, _session(replica)) for replica in self._in_repair]
        for _, session in given_up:
            session.close()
        await self.wait_until(lambda: all(replica.session is not session for replica, session in given_up))

    async def snapshot(self, snapshot_id: UUID) -> None:
        """Snapshot all replicas, while the guest stands still.

        :raises MachineError: when QEMU refuses.
        :raises DownstairsUnreachable: when one does not answer.
        :raises DownstairsRefused: when one cannot, with the reason.
        """
        # In this order, as a repair that fails stops the guest.
        async with self._changing, self._require_machine().standing_still():
            await asyncio.gather(*(_session(replica).snapshot(snapshot_id) for replica in self.active))

    async def _equalise(self, fresh: Sequence[Replica], nodes: dict[Replica, str]) -> None:
        """Attach those replicas that can be used, equal to each other.

        :param nodes: receives their nodes.
        """
        machine = self._require_machine()
        wanted = list(fresh) if len(fresh) >= NEEDED else [*fresh, *(r for r in self.replicas if r.is_stale)][:NEEDED]
        is_clean = all(_session(replica).region.clean for replica in fresh)
        for replica in wanted:
            replica.phase = Phase.RECONCILE
            nodes[replica] = replica.incoming = await self.quorum.attach(machine, _session(replica))
        if len(fresh) >= NEEDED and is_clean:
            return
        first, *others = nodes.values()
        if len(fresh) > NEEDED:
            try:
                await self.quorum.reconcile(machine, [first, *others])
                return
            except MachineError as error:
                logger.info("the replicas have no majority everywhere: %s", error)
        for other in others:
            await self.quorum.copy(machine, source=first, target=other)

    async def _fill(self, replica: Replica, session: Session) -> None:
        machine, active = self._require_machine(), self.active
        replica.phase = Phase.LIVE_REPAIR if active else Phase.RECONCILE
        replica.incoming = node = await self.quorum.attach(machine, session)
        try:
            if len(active) >= NEEDED and await self.quorum.can_repair(machine):
                await self.quorum.repair(machine, target=node, replaces=replica.node)
                replica.become_active(node)
            elif active:
                # A write that fails for want of a second replica must not reach the first one meanwhile.
                async with machine.standing_still():
                    await self._copy(active[0], node)
                    await self._put_in(replica, node)
            else:
                await self._put_in(replica, node)
        except BaseException:
            replica.phase = Phase.CONNECTED
            await self.quorum.detach(machine, node)
            raise
        finally:
            replica.incoming = None
        await session.record_epoch(self._epoch)

    async def _copy(self, good: Replica, node: str) -> None:
        """Make a replica equal to a good one, while the guest stands still."""
        machine = self._require_machine()
        for other in self.replicas:
            other.is_stale = not other.is_active
        await self._begin_epoch()
        good.incoming = source = await self.quorum.attach(machine, _session(good))
        try:
            await self.quorum.copy(machine, source=source, target=node)
        finally:
            good.incoming = None
            await self.quorum.detach(machine, source)

    async def _put_in(self, replica: Replica, node: str) -> None:
        await self.quorum.swap(self._require_machine(), old=replica.node, new=node)
        replica.become_active(node)

    async def _begin_epoch(self) -> None:
        self._epoch += 1
        await self._record_epoch(clean=False)

    async def _record_epoch(self, *, clean: bool) -> None:
        async def record_epoch(session: Session) -> None:
            # One that does not answer is about to be left out.
            with contextlib.suppress(DownstairsUnreachable, DownstairsRefused):
                await session.record_epoch(self._epoch, clean=clean)

        await asyncio.gather(*(record_epoch(_session(replica)) for replica in self.active))

    def _require_machine(self) -> Machine:
        assert self._machine is not None, "assemble first"
        return self._machine


def _session(replica: Replica) -> Session:
    assert replica.session is not None, "it is not connected"
    return replica.session
