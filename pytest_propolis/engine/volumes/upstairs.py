"""The upstairs: a replicated volume as one VM's block backend.

It connects to every downstairs before QEMU sees any of them. While the guest runs, one that dies, hangs or differs is
left out, and is brought up to date when it is back. As long as two replicas have all writes the guest does not notice;
with fewer, its requests wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID, uuid4

from ...propolis_api import (
    CrucibleStorageBackend,
    ReplaceResult,
    SubVolumes,
    UpstairsInfo,
    UpstairsInfoStatus,
    VolumeInfo,
    VolumeStatus,
)
from ..invalid_spec import InvalidSpec
from ..qemu.machine import Machine
from ..qemu.monitor import MachineError
from .block_backend import BackendError, ReplacementRefused
from .keeper import ReplicaKeeper, TakenOver
from .negotiation import Promote
from .quorum import Quorum
from .replica import Phase, Replica
from .replica_set import ReplicaSet
from .session import DownstairsRefused, DownstairsUnreachable
from .stall import StallWatch
from .vcr import FileRequest, RegionRequest, VolumeRequest, as_volume, decode_vcr, only_region
from .vcr_rules import find_change, judge_change

__all__ = ["Upstairs"]

logger = logging.getLogger(__name__)

NO_SPACE: Final = os.strerror(errno.ENOSPC)
QUIESCE_TIMEOUT_S: Final = 5.0


class Upstairs:
    """A `BlockBackend` that serves a Crucible volume."""

    def __init__(self, *, key: str, component: CrucibleStorageBackend, node_name: str) -> None:
        try:
            self._vcr = as_volume(decode_vcr(component.request_json))
            region = only_region(self._vcr)
        except ValueError as error:
            raise InvalidSpec(f"backend {key!r}: {error}") from None
        self._key = key
        self._session_id = uuid4()
        self._readonly = component.readonly or region.opts.read_only
        quorum = Quorum(node_name, size_bytes=region.size_bytes, readonly=self._readonly)
        self._set = ReplicaSet(quorum, region.opts.target)
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BackendError | None = None
        self._state = UpstairsInfoStatus.INITIALIZING
        self._stalls = StallWatch(self._set, volume=f"backend {key!r}")

    @property
    def node(self) -> Mapping[str, Any]:
        return self._set.quorum.node

    @property
    def _described(self) -> str:
        return f"volume {self._vcr.id} (backend {self._key!r})"

    @property
    def status(self) -> VolumeStatus:
        """The volume's status for the API."""
        region, replicas = self._region, self._set.replicas
        upstairs = UpstairsInfo(
            block_size=region.block_size,
            encrypted=region.opts.key is not None,
            generation=region.generation,
            live_repair_in_progress=any(replica.phase is Phase.LIVE_REPAIR for replica in replicas),
            read_only=self._readonly,
            reconcile_in_progress=any(replica.phase is Phase.RECONCILE for replica in replicas),
            session_id=self._session_id,
            state=self._state,
            targets=tuple(replica.info for replica in replicas),
            upstairs_id=region.opts.id,
        )
        return VolumeStatus(volume_info=VolumeInfo(volume=SubVolumes(sub_volumes=(VolumeInfo(upstairs=upstairs),))))

    async def start(self, machine: Machine) -> None:
        self._state = UpstairsInfoStatus.GO_ACTIVE
        self._begin(machine)
        while True:
            await self._set.wait_until(lambda: self._error or self._set.all_connected)
            if self._error:
                raise self._error
            self._check_regions()
            try:
                await self._set.assemble(machine)
            except DownstairsUnreachable as error:  # Its session has not ended: it may be slow.
                logger.info("the volume is not assembled yet: %s", error)
            except MachineError:
                if self._set.all_connected:
                    raise
            else:
                break
        limits_s = [region.stall_timeout_s for region in self._set.regions]
        self._stalls.timeout_s = max(limits_s, default=self._stalls.timeout_s)
        self._state = UpstairsInfoStatus.ACTIVE

    async def replace(self, vcr_json: str) -> ReplaceResult:
        try:
            new = decode_vcr(vcr_json)
            change = find_change(self._vcr, new)
            volume = as_volume(new)
            region = only_region(volume)
        except ValueError as error:
            raise ReplacementRefused(str(error)) from None
        result = ReplaceResult.VCR_MATCHES
        if change is not None:
            replicas = self._set.replicas
            targets = [replica.address for replica in replicas]
            result = judge_change(change, targets, [replica.state for replica in replicas])
        if result is ReplaceResult.MISSING:
            return result
        await self._become(volume, region)
        return result

    async def replace_unchecked(self, vcr_json: str) -> ReplaceResult:
        """As `replace`, but with the downstairs in any state, and also over a read-only parent.

        :raises ReplacementRefused: when it is another volume.
        """
        try:
            volume = as_volume(decode_vcr(vcr_json))
            region = only_region(volume)
        except ValueError as error:
            raise ReplacementRefused(str(error)) from None
        if (volume.id, region.size_bytes) != (self._vcr.id, self._region.size_bytes):
            raise ReplacementRefused("it is another volume")
        await self._become(volume, region)
        return ReplaceResult.STARTED

    async def snapshot(self, machine: Machine, snapshot_id: UUID) -> None:
        if self._state is not UpstairsInfoStatus.ACTIVE:
            raise BackendError(f"volume {self._vcr.id} is {self._state.value}")
        try:
            await self._set.snapshot(snapshot_id)
        except (DownstairsUnreachable, DownstairsRefused) as error:
            raise BackendError(str(error)) from None

    async def quiesce(self, machine: Machine) -> None:
        """Stop the guest, and make the replicas equal, if possible within `QUIESCE_TIMEOUT_S`."""
        if self._state is not UpstairsInfoStatus.ACTIVE:
            return
        self._state = UpstairsInfoStatus.DEACTIVATING
        with contextlib.suppress(MachineError, TimeoutError):
            async with asyncio.timeout(QUIESCE_TIMEOUT_S):
                await machine.execute("stop")
                await self._set.record_clean(clean=True)

    async def record_clean(self, *, clean: bool) -> None:
        """Record at the downstairs whether writes may be in progress; the guest is stopped."""
        if self._state is UpstairsInfoStatus.ACTIVE:
            await self._set.record_clean(clean=clean)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for replica in self._set.replicas:
            if replica.session is not None:
                replica.session.close()
        self._state = UpstairsInfoStatus.DISABLED

    @property
    def _region(self) -> RegionRequest:
        return only_region(self._vcr)

    def _begin(self, machine: Machine) -> None:
        work = [self._stalls.run(machine), self._listen(machine)]
        work += [ReplicaKeeper(self._set, replica, self._promotion).run() for replica in self._set.replicas]
        for coroutine in work:
            task = asyncio.create_task(coroutine)
            task.add_done_callback(lambda done: self._ended(done, machine))
            self._tasks.append(task)

    def _promotion(self) -> Promote:
        region = self._region
        return Promote(
            volume=region.opts.id, session=self._session_id, generation=region.generation, key=region.opts.key
        )

    def _ended(self, task: asyncio.Task[None], machine: Machine) -> None:
        """One of the tasks has ended: the volume is lost, if it was not cancelled."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, TakenOver | DownstairsRefused | MachineError):
            logger.error("unexpected error", exc_info=error)
        self._error = BackendError(f"{self._described}: {error}")
        self._state = UpstairsInfoStatus.DISABLED
        self._set.notify()
        if self._set.is_assembled and not isinstance(error, MachineError):
            self._stalls.give_up_at_next(str(self._error))

    async def _listen(self, machine: Machine) -> None:
        """Process events about replicas that QEMU cannot use, and about requests that fail."""
        with machine.events("QUORUM_REPORT_BAD", "QUORUM_FAILURE", "BLOCK_IO_ERROR") as events:
            while True:
                name, data = await machine.next_event(events)
                if name == "BLOCK_IO_ERROR":
                    self._stalls.note(data)
                    continue
                if name == "QUORUM_FAILURE":
                    self._stalls.note_conflict(data["sector-num"])
                    continue
                for replica in self._set.replicas:
                    if replica.node == data["node-name"] and replica.is_active:
                        replica.lost = data.get("error") or f"it differs from the others at sector {data['sector-num']}"
                        if replica.lost == NO_SPACE and replica.session is not None:
                            replica.full = replica.session.region.file_system
                        replica.alarm.set()

    def _check_regions(self) -> None:
        """
        :raises BackendError: when a downstairs has another region than the volume construction request says.
        """
        region, parent = self._region, self._vcr.read_only_parent
        path = parent.path if isinstance(parent, FileRequest) else None
        for replica in self._set.replicas:
            assert replica.session is not None
            found = replica.session.region
            if (found.size_bytes, found.block_size) != (region.size_bytes, region.block_size):
                raise BackendError(
                    f"{self._described}: downstairs {replica.address} has {found.size_bytes} bytes in blocks of"
                    f" {found.block_size}, and the request says {region.size_bytes} in blocks of {region.block_size}:"
                    " correct it"
                )
            is_first = all(item.epoch <= 1 for item in self._set.regions)
            if path is not None and (found.epoch == 1 or is_first) and found.parent != path:
                raise BackendError(
                    f"{self._described}: downstairs {replica.address} does not lie over the read-only parent {path}:"
                    " leave that out, or make the region over it"
                )

    async def _become(self, volume: VolumeRequest, region: RegionRequest) -> None:
        self._vcr = volume
        for replica, address in zip(self._set.replicas, region.opts.target, strict=True):
            if replica.address != address:
                _move(replica, address, is_assembled=self._set.is_assembled)
            elif replica.session is None:
                replica.moved.set()  # an attempt that is under way would say the former generation
            else:
                with contextlib.suppress(DownstairsUnreachable):  # its keeper sees that, too
                    await self._promote(replica)

    async def _promote(self, replica: Replica) -> None:
        assert replica.session is not None
        try:
            await replica.session.promote(self._promotion())
        except DownstairsRefused as error:
            raise ReplacementRefused(str(error)) from None


def _move(replica: Replica, address: str, *, is_assembled: bool) -> None:
    """Connect a replica to another address, and bring the data there up to date."""
    replica.address = address
    replica.is_stale = replica.is_stale or is_assembled
    replica.moved.set()
    replica.alarm.set()
    if replica.session is not None:
        replica.session.close()
