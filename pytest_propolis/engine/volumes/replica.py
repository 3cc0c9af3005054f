"""A replica as its upstairs sees it: where it is, and how far it takes part in the volume."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto

from ...propolis_api import (
    DownstairsActive,
    DownstairsConnecting,
    DownstairsInfo,
    DownstairsInfoConnectionMode,
    DownstairsInfoNegotiationStatus,
    DownstairsInfoStatus,
    DownstairsLiveRepair,
)
from .session import Session

__all__ = ["Phase", "Replica"]


class Phase(Enum):
    """The state of a replica."""

    WAIT_CONNECT = auto()
    CONNECTED = auto()
    RECONCILE = auto()
    LIVE_REPAIR = auto()
    ACTIVE = auto()


_NEGOTIATION = {
    Phase.WAIT_CONNECT: DownstairsInfoNegotiationStatus.WAIT_CONNECT,
    Phase.CONNECTED: DownstairsInfoNegotiationStatus.WAIT_QUORUM,
    Phase.RECONCILE: DownstairsInfoNegotiationStatus.RECONCILE,
}


@dataclass(slots=True, eq=False)
class Replica:
    """One of the three.

    :param node: its block node, or the placeholder's.
    :param incoming: a further block node of it, which is copied to or from just now.
    :param is_stale: whether it lacks writes that the others have.
    :param lost: set to the reason when QEMU reports that the replica is bad.
    :param full: the file system in which QEMU found no space left for it, until it is active again.
    :param moved: set when it is to be looked for at another address.
    """

    address: str
    node: str
    phase: Phase = Phase.WAIT_CONNECT
    mode: DownstairsInfoConnectionMode = DownstairsInfoConnectionMode.NEW
    session: Session | None = None
    incoming: str | None = None
    is_stale: bool = False
    lost: str | None = None
    full: str = ""
    alarm: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_active(self) -> bool:
        return self.phase is Phase.ACTIVE

    def become_active(self, node: str) -> None:
        """It has all writes, and its node is part of the volume."""
        self.node, self.phase, self.is_stale, self.full = node, Phase.ACTIVE, False, ""

    @property
    def state(self) -> DownstairsInfoStatus:
        """In the words of the API."""
        if self.moved.is_set() and self.session is not None:
            return DownstairsConnecting(
                mode=DownstairsInfoConnectionMode.REPLACED, state=DownstairsInfoNegotiationStatus.WAIT_CONNECT
            )
        if self.phase is Phase.ACTIVE:
            return DownstairsActive()
        if self.phase is Phase.LIVE_REPAIR:
            return DownstairsLiveRepair()
        negotiation = _NEGOTIATION[self.phase]
        if self.phase is Phase.CONNECTED and self.mode is not DownstairsInfoConnectionMode.NEW:
            negotiation = DownstairsInfoNegotiationStatus.LIVE_REPAIR_READY
        return DownstairsConnecting(mode=self.mode, state=negotiation)

    @property
    def info(self) -> DownstairsInfo:
        region = self.session.region if self.session else None
        return DownstairsInfo(
            region_id=region.region_id if region else None,
            repair_addr=f"{self.session.host}:{region.port}" if self.session and region else None,
            state=self.state,
            target_addr=self.address,
        )
