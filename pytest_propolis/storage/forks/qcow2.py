"""Forks that are qcow2 overlays: QEMU alone can read them, and any file system can hold them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final, final

from ...errors import ArtifactError, CapabilityMissing, ConfigError
from ..images.overlays import create_overlay
from ..programs import run_program
from .fork import ForkedImage, ForkRequest, checked_snapshot_name

__all__ = ["QCOW2", "Qcow2Provider"]


@final
class Qcow2Provider:
    """Overlays on the image, with internal snapshots.

    :param qemu_img: the program; found on PATH if None.
    """

    name = "qcow2"
    keeps_format = False

    def __init__(self, qemu_img: Path | None = None) -> None:
        self._qemu_img = qemu_img

    async def obstacle(self, request: ForkRequest) -> str | None:
        return None if self._program() else "qemu-img is not on PATH"

    async def plan(self, request: ForkRequest) -> ForkedImage:
        return ForkedImage(provider=self.name, path=request.target, format="qcow2", origin=request.image.absolute())

    async def fork(self, request: ForkRequest) -> ForkedImage:
        await create_overlay(
            qemu_img=self._require_program(),
            backing=request.image,
            overlay=request.target,
            backing_format=request.image_format,
        )
        return await self.plan(request)

    async def snapshot(self, fork: ForkedImage, name: str) -> None:
        if checked_snapshot_name(name) in await self._snapshots(fork):
            raise ConfigError(f"{fork.path} has a snapshot {name!r} already", hint="choose another name")
        await self._run("snapshot", "-q", "-c", name, fork)

    async def rollback(self, fork: ForkedImage, name: str) -> None:
        names = await self._snapshots(fork)
        if checked_snapshot_name(name) not in names:
            raise ConfigError(f"{fork.path} has no snapshot {name!r}", hint=f"it has: {', '.join(names) or 'none'}")
        await self._run("snapshot", "-q", "-a", name, fork)
        for later in names[names.index(name) + 1 :]:
            await self._run("snapshot", "-q", "-d", later, fork)

    async def remove(self, fork: ForkedImage) -> None:
        fork.path.unlink(missing_ok=True)

    async def _snapshots(self, fork: ForkedImage) -> list[str]:
        """Names, the oldest first."""
        output = await self._run("info", "--output=json", fork)
        found = json.loads(output).get("snapshots", [])
        return [entry["name"] for entry in sorted(found, key=lambda entry: int(entry["id"]))]

    async def _run(self, *parts: str | ForkedImage) -> str:
        arguments = [part if isinstance(part, str) else str(part.path.absolute()) for part in parts]
        finished = await run_program([str(self._require_program()), *arguments])
        if finished.status != 0:
            raise ArtifactError(
                f"qemu-img {' '.join(arguments)} failed: {finished.last_lines()}",
                hint="a VM that has the disk open holds its lock: stop it first",
            )
        return finished.output

    def _program(self) -> Path | None:
        if self._qemu_img is not None:
            return self._qemu_img
        found = shutil.which("qemu-img")
        return Path(found) if found else None

    def _require_program(self) -> Path:
        if (program := self._program()) is None:
            raise CapabilityMissing("qemu-img is not on PATH", hint="install QEMU's tools (package qemu-utils)")
        return program


QCOW2: Final = Qcow2Provider()
