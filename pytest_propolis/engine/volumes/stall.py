"""Requests that wait: QEMU stops a guest whose volume has too few replicas, and lets it try again when it has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..qemu.machine import Machine
from .replica import Replica
from .replica_set import NEEDED, ReplicaSet

__all__ = ["StallWatch"]

logger = logging.getLogger(__name__)

SETTLE_S: Final = 0.1
SAME_STALL_S: Final = 2.0
"""Requests that fail again so soon have not been helped by what was done."""


class StallWatch:
    """Lets a guest try its failed requests again, for a limited time.

    :param volume: what to call the volume.
    """

    def __init__(self, replicas: ReplicaSet, *, volume: str) -> None:
        self._set = replicas
        self._volume = volume
        self.timeout_s = 60.0
        """How long requests wait, before the VM is given up."""
        self._failed = asyncio.Event()
        self._hopeless: str | None = None
        self._is_full = False
        self._conflict = ""
        self._conflict_is_certain = False
        self._has_retried = False

    def note(self, event: Mapping[str, Any]) -> None:
        """QEMU has stopped the guest, for a request of one of its disks has failed."""
        if self.handles(event):
            self._is_full = bool(event.get("nospace"))
            self._failed.set()

    def handles(self, event: Mapping[str, Any]) -> bool:
        """Return whether an error is one of this volume."""
        name = event.get("node-name", "")
        # While a replica is repaired, the volume's node is below one that QEMU has named. So is that of a file which is
        # mirrored, of which only a full file system is an error that stops the guest.
        is_below = name.startswith("#block") and (not event.get("nospace") or self._set.is_in_repair)
        return bool(name == self._set.quorum.name or is_below)

    def note_conflict(self, sector: int) -> None:
        """QEMU has found no two replicas that agree about a sector, or that do not fail."""
        if len(self._set.active) >= NEEDED:
            self._conflict_is_certain = bool(self._conflict) and self._has_retried
            self._has_retried = False
            self._conflict = f"; {_addresses(self._set.active)} differ at sector {sector}, and no third one can tell"

    def give_up_at_next(self, reason: str) -> None:
        """Waiting is pointless from now on."""
        self._hopeless = reason
        self._set.notify()

    async def run(self, machine: Machine) -> None:
        """Do so until cancelled.

        :raises MachineError: when QEMU has ended.
        """
        machine.disk_error_handlers.append(self.handles)
        loop = asyncio.get_running_loop()
        began_s = retried_s = -SAME_STALL_S
        while True:
            await self._failed.wait()
            self._failed.clear()
            if self._is_full:
                machine.give_up(self._describe_full())
                return
            if loop.time() - retried_s > SAME_STALL_S:
                began_s = loop.time()
            if len(self._set.active) < NEEDED and not self._conflict_is_certain:
                # The replica that is lost had failed the request; QEMU says so before the loss is known.
                self._conflict = ""
            try:
                async with asyncio.timeout_at(began_s + self.timeout_s):
                    await self._set.wait_until(lambda: self._hopeless or len(self._set.active) >= NEEDED)
                    await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                full = any(replica.full for replica in self._set.replicas)
                machine.give_up(self._describe_full() if full else self._describe())
                return
            if self._hopeless:
                machine.give_up(self._hopeless)
                return
            retried_s = loop.time()
            self._has_retried = True
            await machine.retry_io()

    def _describe_full(self) -> str:
        """As for a disk that is a file; kept short, because a websocket's close frame has it."""
        known = {replica.full for replica in self._set.replicas} | {item.file_system for item in self._set.regions}
        return f"{self._volume}: no space left in {' and '.join(sorted(filter(None, known))) or 'its file system'}"

    def _describe(self) -> str:
        replicas = self._set.replicas
        good = [replica for replica in replicas if replica.is_active or not replica.is_stale]
        states = ", ".join(f"{replica.address} {_state_name(replica.state)}" for replica in replicas)
        return (
            f"{self._volume} has had fewer than {NEEDED} usable replicas for {self.timeout_s:.0f} s: {states};"
            f" all writes are in {_addresses(good) or 'none of them'}{self._conflict}"
        )


def _addresses(replicas: Sequence[Replica]) -> str:
    return " and ".join(replica.address for replica in replicas)


def _state_name(state: Any) -> str:
    mode = getattr(state, "mode", None)
    return f"is {mode.value}" if mode else f"is {state.__struct_config__.tag}"
