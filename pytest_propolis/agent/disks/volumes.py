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
from uuid import UUID, uuid4

import msgspec

from ...agent_api.retention import Kept
from ...agent_api.volumes import CreateVolume, DownstairsFault, DownstairsListed, FaultKind, VolumeCreated, VolumeListed
from ...engine.qemu.binary import Qemu
from ...engine.volumes.downstairs import Downstairs
from ...engine.volumes.region_file import RegionFile
from ...engine.volumes.storage_daemon import LOOPBACK, StorageDaemonError
from ...engine.volumes.vcr import REPLICAS
from ...errors import AgentError, ArtifactError, CapabilityMissing, ConfigError, ResourceExhausted
from ...ledger.entry import Entry
from ...ledger.writer import LedgerWriter
from ...storage.images.image_references import require_contained
from ...storage.images.overlays import check_image, create_overlay, image_info, presumed_format
from ...storage.programs import executable_program
from .disk_images import require_absolute
from .downstairs_program import DownstairsProgram, Region

__all__ = ["OwnedVolume", "create_volume"]

logger = logging.getLogger(__name__)

KEY_BYTES: Final = 32
LOG_LINES: Final = 5
EXTENT_BYTES: Final = 64 << 20

AnyDownstairs = Downstairs | DownstairsProgram


@dataclass(slots=True, kw_only=True)
class OwnedVolume:
    """The downstairs of one volume, their owner, and their ledger entries.

    :param program: what each downstairs runs.
    :param qemu_img: what makes overlays; None where `program` is a ``crucible-downstairs``.
    :param black_hole: a socket that listens and never answers.
    """

    id: str
    request: CreateVolume
    client: str
    region: UUID
    key: str | None
    size_bytes: int
    parent: str | None
    program: Path
    qemu_img: Path | None
    directory: Entry
    writer: LedgerWriter
    since: float
    black_hole: socket.socket
    downstairs: list[AnyDownstairs] = field(default_factory=list)
    _closed: bool = field(default=False, init=False)

    @property
    def path(self) -> Path:
        return Path(self.directory.what["path"])

    @property
    def extent_bytes(self) -> int:
        return min(EXTENT_BYTES, self.size_bytes)

    def created(self) -> VolumeCreated:
        """Return the facts that its owner needs for volume construction requests."""
        host, port = self.black_hole.getsockname()
        return VolumeCreated(
            id=self.id,
            upstairs_id=self.region,
            key=self.key,
            size_bytes=self.size_bytes,
            extent_bytes=self.extent_bytes,
            parent=self.parent,
            targets=tuple(downstairs.address for downstairs in self.downstairs),
            black_hole=f"{host}:{port}",
        )

    def listed(self, kept: Kept | None = None) -> VolumeListed:
        return VolumeListed(
            id=self.id,
            name=self.request.name,
            group=self.request.group,
            client=self.client,
            size_bytes=self.size_bytes,
            since=self.since,
            downstairs=tuple(_listed(downstairs) for downstairs in self.downstairs),
            kept=kept,
        )

    def find(self, address: str) -> AnyDownstairs:
        """
        :raises ConfigError: when it has no downstairs of that address.
        """
        for downstairs in self.downstairs:
            if downstairs.address == address:
                return downstairs
        known = ", ".join(downstairs.address for downstairs in self.downstairs)
        raise ConfigError(f"volume {self.request.name!r} has no downstairs {address}", hint=f"it has {known}")

    async def add_downstairs(self, *, blank: bool = False) -> AnyDownstairs:
        """Start a downstairs over a new file with the volume's first contents, or an empty one.

        :param blank: whether it is empty, because what the others hold is copied to it.

        :raises ResourceExhausted: when there is no space for it.
        :raises AgentError: when it does not start.
        """
        downstairs = await self._make(len(self.downstairs), blank=blank)
        if self._closed:
            await downstairs.close()
            raise AgentError(f"volume {self.request.name!r} has been removed")
        self.downstairs.append(downstairs)
        await _answered(downstairs.start())
        return downstairs

    async def _make(self, number: int, *, blank: bool) -> AnyDownstairs:
        log_path = self.path / f"{number}.log"
        if self.qemu_img is None:
            return await self._make_program(number, log_path, blank=blank)
        over_parent = self.parent is not None and not blank
        path = self.path / f"{number}.{'qcow2' if over_parent else 'raw'}"
        region = RegionFile(
            volume=self.region,
            path=path,
            size_bytes=self.size_bytes,
            block_size=self.request.block_size,
            key=self.key,
            file_format="qcow2" if over_parent else "raw",
            parent=self.parent if over_parent else None,
            # An empty one must not be taken for one that is up to date.
            epoch=1 if over_parent or (self.request.contents is not None and not blank) else 0,
            stall_timeout_s=self.request.stall_timeout_s,
        )
        await self._make_file(region, self.qemu_img, contents=None if blank else self.request.contents)
        return Downstairs(region, program=self.program, log_path=log_path, journal=self.writer)

    async def _make_program(self, number: int, log_path: Path, *, blank: bool) -> DownstairsProgram:
        region = Region(
            id=self.region,
            directory=self.path / f"region-{number}",
            block_size=self.request.block_size,
            extent_bytes=self.extent_bytes,
            size_bytes=self.size_bytes,
            is_encrypted=self.key is not None,
        )
        contents = None
        if self.request.contents is not None and not blank:
            contents = self.path / "contents"
            _write_file(contents, self.request.contents, len(self.request.contents))
        downstairs = DownstairsProgram(region, program=self.program, log_path=log_path, journal=self.writer)
        try:
            await downstairs.create(contents)
        except BaseException:
            await downstairs.close()
            raise
        return downstairs

    async def fault(self, downstairs: AnyDownstairs, fault: DownstairsFault) -> None:
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
                if not 0 <= fault.offset <= self.size_bytes - fault.length:
                    raise ConfigError(
                        f"{fault.length} bytes at {fault.offset} are not in a volume of {self.size_bytes} bytes"
                    )
                downstairs.region.corrupt(fault.offset, fault.length)

    async def close(self) -> None:
        """End its processes and remove its files. Idempotent."""
        self._closed = True
        await asyncio.gather(*(downstairs.close() for downstairs in self.downstairs))
        self.black_hole.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self.writer.gone(self.directory)

    async def _make_file(self, region: RegionFile, qemu_img: Path, *, contents: bytes | None) -> None:
        if region.parent is not None:
            await create_overlay(
                qemu_img=qemu_img,
                backing=Path(region.parent),
                overlay=region.path,
                backing_format=self.request.image_format or "raw",
                size_bytes=region.size_bytes,
            )
            return
        _write_file(region.path, contents or b"", region.size_bytes)


async def create_volume(
    request: CreateVolume,
    *,
    qemu: Qemu | None,
    parent: Path,
    writer: LedgerWriter,
    client: str,
    allowed: Sequence[Path],
) -> OwnedVolume:
    """Create a volume with three running downstairs.

    :param qemu: not needed for a volume whose downstairs are programs of the user's.
    :param parent: the parent of its directory.
    :param allowed: directories, besides the image's own, in which files referenced by the image may lie.
    :raises ConfigError: when it cannot have that size.
    :raises ArtifactError: when its image is missing or broken, is not of its format, or names files elsewhere.
    :raises CapabilityMissing: when the host lacks ``qemu-storage-daemon``.
    :raises ResourceExhausted: when there is no space for it.
    """
    if request.program is not None:
        program, qemu_img = Path(request.program), None
    else:
        assert qemu is not None
        program, qemu_img = _storage_daemon(qemu), qemu.img
    if request.image is not None:
        image_format = await _checked_format(request, qemu_img, allowed)
        request = msgspec.structs.replace(request, image_format=image_format)
    size_bytes = await _size(request, qemu_img)
    volume_id = secrets.token_hex(8)
    directory = parent / volume_id
    with writer.creating("directory", directory) as entry:
        directory.mkdir(parents=True, mode=0o700)
    volume = OwnedVolume(
        id=volume_id,
        request=request,
        client=client,
        region=uuid4(),
        key=_key(request),
        size_bytes=size_bytes,
        parent=request.image,
        program=program,
        qemu_img=qemu_img,
        directory=entry,
        writer=writer,
        since=time.time(),
        black_hole=socket.create_server((LOOPBACK, 0)),
    )
    try:
        if request.program is not None:
            volume.program = executable_program(program, directory)
        for _ in range(REPLICAS):
            await volume.add_downstairs()
    except BaseException:
        await asyncio.shield(volume.close())
        raise
    return volume


async def _checked_format(request: CreateVolume, qemu_img: Path | None, allowed: Sequence[Path]) -> str:
    """Return the format of a volume's image.

    :raises ArtifactError: when the image is missing or broken, is not of its format, or names files elsewhere.
    """
    image = require_absolute(request.image or "", what="disk image")
    image_format = request.image_format or presumed_format(image)
    require_contained(image, image_format, allowed=allowed)
    if qemu_img is None:
        if image_format == "raw":
            return image_format
        raise ArtifactError(
            f"{image} is a {image_format} image, and the read-only parent of a crucible-downstairs is raw",
            hint=f"convert it: qemu-img convert -O raw {image} {image.with_suffix('.raw')}",
        )
    await check_image(qemu_img=qemu_img, image=image, image_format=image_format)
    return image_format


async def _size(request: CreateVolume, qemu_img: Path | None) -> int:
    """Return the size in bytes, a whole number of extents, and at least the size of the image."""
    size_bytes = max(request.size_bytes, len(request.contents or b""))
    if request.image is not None:
        size_bytes = max(size_bytes, await _image_size(request, Path(request.image), qemu_img))
    if size_bytes < request.block_size:
        raise ConfigError(f"volume {request.name!r}: {size_bytes} bytes are less than one block")
    extent = min(EXTENT_BYTES, size_bytes)
    return -(-size_bytes // extent) * extent


async def _image_size(request: CreateVolume, image: Path, qemu_img: Path | None) -> int:
    if qemu_img is None:
        return image.stat().st_size
    assert request.image_format is not None
    return (await image_info(qemu_img=qemu_img, image=image, image_format=request.image_format)).virtual_size_bytes


def _key(request: CreateVolume) -> str | None:
    """Return the key of a volume; None for a program that imports contents, which it does not encrypt."""
    if request.program is not None and request.contents is not None:
        return None
    return b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def _storage_daemon(qemu: Qemu) -> Path:
    if qemu.storage_daemon is None:
        raise CapabilityMissing(
            f"there is no qemu-storage-daemon beside {qemu.system} or on PATH",
            hint="install the package qemu-utils (apt) or qemu-storage-daemon (dnf)",
        )
    return qemu.storage_daemon


def _write_file(path: Path, contents: bytes, size_bytes: int) -> None:
    """
    :raises ResourceExhausted: when it cannot be written.
    """
    try:
        with path.open("wb") as file:
            file.write(contents)
            file.truncate(size_bytes)
    except OSError as error:
        raise ResourceExhausted(f"{path} cannot be made: {error.strerror or error}") from None


async def _answered(work: Awaitable[None]) -> None:
    try:
        await work
    except StorageDaemonError as error:
        raise AgentError(f"downstairs: {error}") from None


def _listed(downstairs: AnyDownstairs) -> DownstairsListed:
    return DownstairsListed(
        address=downstairs.address,
        state=downstairs.state,
        pid=downstairs.pid,
        path=str(downstairs.path),
        generation=downstairs.generation,
        epoch=downstairs.epoch,
        snapshots=tuple(map(str, downstairs.snapshots)),
        log=tuple(_last_lines(downstairs.log_path)),
    )


def _last_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        return []
