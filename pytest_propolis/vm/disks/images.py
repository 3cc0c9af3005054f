"""Files of a host by the names that tests use: images, boot ROMs and other artifacts of catalogs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from ...agent_api.image_recipe import ImageNeeded
from ...errors import ConfigError
from ...field_checks import closest
from ...guests.registry import GuestRegistry
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host
from ...storage.artifacts import Artifact
from ...storage.host_path import host_path
from ...storage.progress import Progress
from ..config import VmConfig
from ..provisioning.guest_images import ready_image
from .image_disk import ImageDisk, image_format_of
from .kinds import DataDisk, Disk

__all__ = ["ImageFinder"]


class ImageFinder:
    """Finds images and other artifacts on one host, and has them fetched there.

    :param artifact: finds an artifact of a catalog.
    """

    def __init__(
        self,
        host: Host,
        agent: AsyncAgentClient,
        *,
        guests: GuestRegistry,
        artifact: Callable[[str], Artifact | None],
        boot_timeout_s: float,
        progress: Progress,
    ) -> None:
        self._host = host
        self._agent = agent
        self._guests = guests
        self._artifact = artifact
        self._boot_timeout_s = boot_timeout_s
        self._progress = progress

    async def path(self, image: str | Path | Artifact) -> str:
        """Return the path of an image on the host.

        :param image: the name of an artifact, or of a guest with a disk; a path on this machine, which as text has a
            slash; an artifact.
        :raises ConfigError: when there is no such image.
        :raises ArtifactError: when it cannot be had.
        """
        if isinstance(image, Artifact):
            return await self._fetched(image)
        if path := await self.artifact(image):
            return path
        if isinstance(image, str) and "/" not in image:
            return await self._disk_of(image)
        return await self._host.provide(Path(host_path(image, purpose="the image")), self._progress)

    async def artifact(self, name: str | Path) -> str | None:
        """Return the path of an artifact on the host; None if no catalog has one of this name.

        :raises ArtifactError: when it cannot be had.
        """
        found = self._artifact(name) if isinstance(name, str) else None
        return await self._fetched(found) if found else None

    async def program(self, program: str | Path, *, what: str, hint: str) -> str:
        """Return the path of a program on the host.

        :param program: the name of an artifact; a path on this machine, which as text has a slash; a name on PATH.
        :param what: what the program is, and `hint` what may be given, for users.
        :raises ConfigError: when there is none.
        """
        if path := await self.artifact(program):
            return path
        is_path = isinstance(program, Path) or "/" in program
        found = shutil.which(host_path(program, purpose=what) if is_path else program)
        if found is None:
            missing = "is not a program" if Path(program).exists() else "does not exist"
            raise ConfigError(f"{what} {str(program)!r} {missing}", hint=hint)
        return await self._host.provide(Path(found).absolute(), self._progress)

    async def boot_rom(self, rom: str | Path) -> str:
        """Return the path of a boot ROM on the host.

        :param rom: the name of an artifact, or a path on this machine.
        :raises ConfigError: when there is none.
        """
        if path := await self.artifact(rom):
            return path
        file = Path(host_path(rom, purpose="the boot ROM"))
        if not file.is_file():
            hint = "give the path of a UEFI image, or the name of an artifact"
            raise ConfigError(f"the boot ROM {str(rom)!r} does not exist", hint=hint)
        return await self._host.provide(file, self._progress)

    async def resolved(self, config: VmConfig) -> VmConfig:
        """Return a configuration whose disks name their images by paths on the host."""
        return dataclasses.replace(config, disks=tuple([await self._on_host(disk) for disk in config.disks]))

    async def _on_host(self, disk: Disk) -> Disk:
        if isinstance(disk, ImageDisk):
            path = await self.path(disk.artifact)
            return disk.as_data_disk(Path(path), image_format=disk.image_format or image_format_of(path))
        if self._host.shares_files or not isinstance(disk, DataDisk) or disk.image is None or disk.is_in_memory:
            return disk
        return dataclasses.replace(disk, image=Path(await self._host.provide(disk.image, self._progress)))

    async def _fetched(self, artifact: Artifact) -> str:
        there = await self._host.provide_artifact(artifact, self._progress)
        (path,) = await self._agent.get_images(ImageNeeded(artifacts=(there,)), self._progress)
        return str(path)

    async def _disk_of(self, name: str) -> str:
        if name not in self._guests.adapters:
            raise ConfigError(
                f"there is no artifact and no guest named {name!r}",
                hint=closest(name, self._guests.adapters) or "--propolis-artifacts names files that define artifacts",
            )
        guest = self._guests.get(name)
        ready = await ready_image(
            self._host, self._agent, guest.image, timeout_s=self._boot_timeout_s, progress=self._progress
        )
        if ready.disk is None:
            raise ConfigError(f"the guest {guest.name} has no disk", hint="name another guest, or an artifact")
        return str(ready.disk)
