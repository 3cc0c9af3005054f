"""Replicated volumes on the agent's host: the files and processes of their downstairs."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import socket
import time
from base64 import b64encode
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec

from ...agent_api.retention import Kept
from ...agent_api.volumes import CreateVolume, DownstairsFault, DownstairsListed, FaultKind, VolumeCreated, VolumeListed
from ...engine.volumes.storage_daemon import LOOPBACK, StorageDaemonError
from ...engine.volumes.vcr import REPLICAS
from ...errors import AgentError, ConfigError
from ...ledger.entry import Entry
from ...ledger.writer import LedgerWriter
from ...storage.files import last_lines
from ...storage.images.image_references import require_contained
from ...storage.images.overlays import presumed_format
from .disk_images import require_absolute
from .downstairs.kind import Downstairs, DownstairsKind, VolumeFacts

__all__ = ["BlackHole", "OwnedVolume", "create_volume"]

logger = logging.getLogger(__name__)

KEY_BYTES: Final = 32
LOG_LINES: Final = 5
EXTENT_BYTES: Final = 64 << 20
FILL_TIMEOUT_S: Final = 5.0


class BlackHole:
    """An address of the loopback interface that drops the packets with which connections begin.

    To clients it is a host that has gone: no connection is accepted, and none is refused. A socket that listens drops
    such packets when the queue of its connections is full. That needs no privileges, unlike a network namespace.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=0)
        try:
            # Linux takes one connection more than the backlog.
            self._queued = socket.create_connection(self._listener.getsockname(), timeout=FILL_TIMEOUT_S)
        except BaseException:
            self._listener.close()
            raise

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        self._queued.close()
        self._listener.close()


@dataclass(slots=True, kw_only=True)
class OwnedVolume:
    """The downstairs of one volume, their owner, and their ledger entries.

    :param kind: makes its downstairs.
    :param black_hole: an address for requests that cannot be fulfilled.
    """

    id: str
    facts: VolumeFacts
    kind: DownstairsKind
    client: str
    directory: Entry
    writer: LedgerWriter
    since: float
    black_hole: BlackHole
    downstairs: list[Downstairs] = field(default_factory=list)
    _closed: bool = field(default=False, init=False)

    @property
    def request(self) -> CreateVolume:
        return self.facts.request

    def created(self) -> VolumeCreated:
        """Return the facts that its owner needs for volume construction requests."""
        return VolumeCreated(
            id=self.id,
            upstairs_id=self.facts.upstairs_id,
            key=self.facts.key,
            size_bytes=self.facts.size_bytes,
            extent_bytes=self.facts.extent_bytes,
            parent=self.request.image,
            targets=tuple(downstairs.address for downstairs in self.downstairs),
            black_hole=self.black_hole.address,
        )

    def listed(self, kept: Kept | None = None) -> VolumeListed:
        return VolumeListed(
            id=self.id,
            name=self.request.name,
            group=self.request.group,
            client=self.client,
            size_bytes=self.facts.size_bytes,
            since=self.since,
            downstairs=tuple(_listed(downstairs) for downstairs in self.downstairs),
            kept=kept,
        )

    def find(self, address: str) -> Downstairs:
        """
        :raises ConfigError: when it has no downstairs of that address.
        """
        for downstairs in self.downstairs:
            if downstairs.address == address:
                return downstairs
        known = ", ".join(downstairs.address for downstairs in self.downstairs)
        raise ConfigError(f"volume {self.request.name!r} has no downstairs {address}", hint=f"it has {known}")

    async def add_downstairs(self, *, blank: bool = False) -> Downstairs:
        """Start a downstairs over a new file with the volume's first contents, or an empty one.

        :param blank: whether it is empty, because what the others hold is copied to it.

        :raises ResourceExhausted: when there is no space for it.
        :raises AgentError: when it does not start.
        """
        downstairs = await self.kind.make(self.facts, len(self.downstairs), writer=self.writer, blank=blank)
        if self._closed:
            await downstairs.close()
            raise AgentError(f"volume {self.request.name!r} has been removed")
        self.downstairs.append(downstairs)
        await _answered(downstairs.start())
        return downstairs

    async def fault(self, downstairs: Downstairs, fault: DownstairsFault) -> None:
        """Inject a fault into a downstairs.

        :raises AgentError: if that is not possible.
        """
        match fault.kind:
            case FaultKind.KILL:
                await downstairs.kill()
            case FaultKind.RESTART:
                await _answered(downstairs.start())
            case FaultKind.PAUSE:
                downstairs.pause()
            case FaultKind.RESUME:
                downstairs.resume()
            case FaultKind.DISCONNECT:
                await _answered(downstairs.disconnect())
            case FaultKind.SLOW:
                await _answered(downstairs.slow_down(fault.delay_ms))
            case FaultKind.CORRUPT:
                if not 0 <= fault.offset <= self.facts.size_bytes - fault.length:
                    raise ConfigError(
                        f"{fault.length} bytes at {fault.offset} are not in a volume of {self.facts.size_bytes} bytes"
                    )
                downstairs.region.corrupt(fault.offset, fault.length)

    async def close(self) -> None:
        """End its processes and remove its files. Idempotent."""
        self._closed = True
        await asyncio.gather(*(downstairs.close() for downstairs in self.downstairs))
        self.black_hole.close()
        shutil.rmtree(self.facts.directory, ignore_errors=True)
        self.writer.gone(self.directory)


async def create_volume(
    request: CreateVolume,
    *,
    kind: DownstairsKind,
    parent: Path,
    writer: LedgerWriter,
    client: str,
    allowed: Sequence[Path],
) -> OwnedVolume:
    """Create a volume with three running downstairs.

    :param kind: that of its downstairs.
    :param parent: the parent of its directory.
    :param allowed: directories, besides the image's own, in which files referenced by the image may lie.
    :raises ConfigError: when it cannot have that size.
    :raises ArtifactError: when its image is missing or broken, is not of its format, or names files elsewhere.
    :raises ResourceExhausted: when there is no space for it.
    """
    request = await _with_format(request, kind, allowed)
    size_bytes, extent_bytes = await _size(request, kind)
    volume_id = secrets.token_hex(8)
    directory = parent / volume_id
    with writer.creating("directory", directory) as entry:
        directory.mkdir(parents=True, mode=0o700)
    facts = VolumeFacts(
        request=request,
        upstairs_id=uuid4(),
        key=b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii") if kind.is_encrypted(request) else None,
        size_bytes=size_bytes,
        extent_bytes=extent_bytes,
        directory=directory,
    )
    volume = OwnedVolume(
        id=volume_id,
        facts=facts,
        kind=kind,
        client=client,
        directory=entry,
        writer=writer,
        since=time.time(),
        black_hole=BlackHole(),
    )
    try:
        for _ in range(REPLICAS):
            await volume.add_downstairs()
    except BaseException:
        await asyncio.shield(volume.close())
        raise
    return volume


async def _with_format(request: CreateVolume, kind: DownstairsKind, allowed: Sequence[Path]) -> CreateVolume:
    """Return a request with the format of its image, if it has one.

    :raises ArtifactError: when the image is missing or broken, is not of its format, or names files elsewhere.
    """
    if request.image is None:
        return request
    image = require_absolute(request.image, what="disk image")
    image_format = request.image_format or presumed_format(image)
    require_contained(image, image_format, allowed=allowed)
    await kind.require_image(image, image_format)
    return msgspec.structs.replace(request, image_format=image_format)


async def _size(request: CreateVolume, kind: DownstairsKind) -> tuple[int, int]:
    """Return the size in bytes, a whole number of extents, at least the size of the image; and that of an extent."""
    size_bytes = max(request.size_bytes, len(request.contents or b""))
    if request.image is not None:
        assert request.image_format is not None
        size_bytes = max(size_bytes, await kind.image_size(Path(request.image), request.image_format))
    if size_bytes < request.block_size:
        raise ConfigError(f"volume {request.name!r}: {size_bytes} bytes are less than one block")
    extent = min(EXTENT_BYTES, size_bytes)
    return -(-size_bytes // extent) * extent, extent


async def _answered(work: Awaitable[None]) -> None:
    try:
        await work
    except StorageDaemonError as error:
        raise AgentError(f"downstairs: {error}") from None


def _listed(downstairs: Downstairs) -> DownstairsListed:
    return DownstairsListed(
        address=downstairs.address,
        state=downstairs.state,
        pid=downstairs.pid,
        path=str(downstairs.path),
        generation=downstairs.generation,
        epoch=downstairs.epoch,
        snapshots=tuple(map(str, downstairs.snapshots)),
        log=tuple(last_lines(downstairs.log_path, LOG_LINES)),
    )
