"""This project's own downstairs: NBD servers over files that QEMU's tools make."""

from __future__ import annotations

from pathlib import Path

from ....agent_api.volumes import CreateVolume
from ....engine.qemu.binary import Qemu
from ....engine.volumes.downstairs import Downstairs
from ....engine.volumes.region_file import RegionFile
from ....errors import CapabilityMissing
from ....ledger.writer import LedgerWriter
from ....storage.images.overlays import check_image, create_overlay, image_info
from .kind import VolumeFacts, write_file

__all__ = ["OwnDownstairs"]


class OwnDownstairs:
    """The `DownstairsKind` that the engine's upstairs uses.

    :raises CapabilityMissing: when the host lacks ``qemu-storage-daemon``.
    """

    def __init__(self, qemu: Qemu) -> None:
        if qemu.storage_daemon is None:
            raise CapabilityMissing(
                f"there is no qemu-storage-daemon beside {qemu.system} or on PATH",
                hint="install the package qemu-utils (apt) or qemu-storage-daemon (dnf)",
            )
        self._program = qemu.storage_daemon
        self._qemu_img = qemu.img

    async def require_image(self, image: Path, image_format: str) -> None:
        await check_image(qemu_img=self._qemu_img, image=image, image_format=image_format)

    async def image_size(self, image: Path, image_format: str) -> int:
        return (await image_info(qemu_img=self._qemu_img, image=image, image_format=image_format)).virtual_size_bytes

    def is_encrypted(self, request: CreateVolume) -> bool:
        return True

    async def make(self, volume: VolumeFacts, number: int, *, writer: LedgerWriter, blank: bool) -> Downstairs:
        request = volume.request
        parent, contents = (None, None) if blank else (request.image, request.contents)
        file_format = "raw" if parent is None else "qcow2"
        region = RegionFile(
            volume=volume.upstairs_id,
            path=volume.directory / f"{number}.{file_format}",
            size_bytes=volume.size_bytes,
            block_size=request.block_size,
            key=volume.key,
            file_format=file_format,
            parent=parent,
            # An empty one must not be taken for one that is up to date.
            epoch=0 if parent is None and contents is None else 1,
            stall_timeout_s=request.stall_timeout_s,
        )
        if parent is None:
            write_file(region.path, contents or b"", volume.size_bytes)
        else:
            await create_overlay(
                qemu_img=self._qemu_img,
                backing=Path(parent),
                overlay=region.path,
                backing_format=request.image_format or "raw",
                size_bytes=volume.size_bytes,
            )
        log_path = volume.directory / f"{number}.log"
        return Downstairs(region, program=self._program, log_path=log_path, journal=writer)
