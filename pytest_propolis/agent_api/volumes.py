"""Messages between clients and agents about replicated volumes."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import msgspec

from .retention import Kept

__all__ = ["CreateVolume", "DownstairsFault", "DownstairsListed", "FaultKind", "VolumeCreated", "VolumeListed"]


class CreateVolume(msgspec.Struct, frozen=True, kw_only=True):
    """Request a replicated volume: three downstairs.

    :param name: for users.
    :param group: what it belongs to.
    :param size_bytes: at least; it becomes a whole number of extents of 64 MiB, and is never smaller than the image.
    :param block_size: 512 or 4096.
    :param image: path of an image that it lies over, and which must not change meanwhile; None for an empty one.
    :param image_format: ``qcow2`` or ``raw``; None for raw, unless the image looks like a container.
    :param contents: what it holds from its first byte on, instead of an image; not larger than it.
    :param stall_timeout_s: how long the guest's requests wait, when too few replicas are left.
    :param program: the path of a program with the command line of ``crucible-downstairs``, on the agent's host, which
        its downstairs are; None for the project's own downstairs.
    """

    name: str
    group: str
    size_bytes: int
    stall_timeout_s: float = 60.0
    block_size: int = 4096
    image: str | None = None
    image_format: str | None = None
    contents: bytes | None = None
    program: str | None = None


class VolumeCreated(msgspec.Struct, frozen=True, kw_only=True):
    """The volume: what volume construction requests for it say.

    :param upstairs_id: of whichever upstairs uses it.
    :param key: what the upstairs has to know, in base64; None for a volume that is not encrypted.
    :param targets: the addresses of its downstairs.
    :param black_hole: an address that drops the packets with which connections begin.
    :param parent: the image that it lies over.
    """

    id: str
    upstairs_id: UUID
    key: str | None
    size_bytes: int
    extent_bytes: int
    targets: tuple[str, ...]
    black_hole: str
    parent: str | None = None


class DownstairsListed(msgspec.Struct, frozen=True, kw_only=True):
    """One downstairs on the agent's host.

    :param state: ``serving``, ``idle``, ``paused`` or ``dead``; ``running`` if only its program has more to report.
    :param path: its file, on that host; the directory of its region, if it is a program.
    :param generation: of the upstairs that had it last; 0 if it is a program.
    :param epoch: those of the highest have all writes; 0 if it is a program.
    :param snapshots: the files of its snapshots.
    :param log: the last lines that its process wrote.
    """

    address: str
    state: str
    pid: int | None
    path: str
    generation: int
    epoch: int
    snapshots: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


class VolumeListed(msgspec.Struct, frozen=True, kw_only=True):
    """One volume of the agent's; also the downstairs that were replaced."""

    id: str
    name: str
    group: str
    client: str
    size_bytes: int
    since: float
    downstairs: tuple[DownstairsListed, ...]
    kept: Kept | None = None


class FaultKind(StrEnum):
    """A kind of fault that can be injected into a downstairs."""

    KILL = "kill"
    RESTART = "restart"
    PAUSE = "pause"
    RESUME = "resume"
    DISCONNECT = "disconnect"
    CORRUPT = "corrupt"
    SLOW = "slow"


class DownstairsFault(msgspec.Struct, frozen=True, kw_only=True):
    """Have something happen to a downstairs.

    :param offset: with `CORRUPT`, where in the volume, in bytes.
    :param length: with `CORRUPT`, how many bytes.
    :param delay_ms: with `SLOW`, how far apart its requests are served; 0 for at once.
    """

    kind: FaultKind
    offset: int = 0
    length: int = 0
    delay_ms: float = 0.0
