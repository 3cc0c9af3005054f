"""Messages between an upstairs and a downstairs beside NBD: lines of JSON on a permanent connection.

The connection is the upstairs's session: when it ends, the downstairs exports nothing any more.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

__all__ = [
    "LONGEST_LINE",
    "Answer",
    "Done",
    "Fenced",
    "Promote",
    "Promoted",
    "RecordEpoch",
    "Refused",
    "Request",
    "Snapshot",
]

LONGEST_LINE: Final = 1 << 16


class Promote(msgspec.Struct, frozen=True, kw_only=True, tag="promote"):
    """Ask to become the downstairs's only upstairs; of one that is it already, to be so with a higher generation.

    :param volume: the id of the upstairs in the volume construction request.
    :param session: a random id of this run of the upstairs.
    """

    volume: UUID
    session: UUID
    generation: int
    key: str | None


class RecordEpoch(msgspec.Struct, frozen=True, kw_only=True, tag="mark"):
    """Record the session's epoch in the region's metadata, before any write.

    :param epoch: counts how often the set of replicas that have all writes has changed.
    :param clean: no write is under way, and none will come in this session.
    """

    epoch: int
    clean: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """Snapshot the region. No write is in progress."""

    id: UUID


Request = Promote | RecordEpoch | Snapshot


class Promoted(msgspec.Struct, frozen=True, kw_only=True, tag="promoted"):
    """The upstairs has the region to itself now.

    :param export: the NBD export; no other one of this downstairs has ever had or will have its name.
    :param port: of the NBD server, at the address of this connection.
    :param last_generation: the generation of the session before; 0 if there was none.
    :param epoch: as the last session marked it.
    :param clean: whether the last session ended in order.
    :param parent: the image that the region lies over.
    :param stall_timeout_s: how long the guest's requests shall wait, when too few replicas are left.
    :param file_system: the mount point of the file system that the region is on, for users; empty if it is not known.
    """

    region_id: UUID
    size_bytes: int
    block_size: int
    export: str
    port: int
    last_generation: int
    epoch: int
    clean: bool
    parent: str | None = None
    stall_timeout_s: float = 60.0
    file_system: str = ""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The request is not granted.

    :param final: whether asking again is pointless.
    :param generation: that of the upstairs that has the region, where that is the reason.
    """

    reason: str
    final: bool
    generation: int | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request has been executed."""


class Fenced(msgspec.Struct, frozen=True, kw_only=True, tag="fenced"):
    """Sent without a request: another upstairs has taken over."""

    generation: int


Answer = Promoted | Refused | Done | Fenced
