"""The factory of replicated disks: makes them for a test, and takes them away."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from ...agent_api.messages import Keep, KeptListed, ResourceIds
from ...agent_api.volumes import CreateVolume
from ...errors import ConfigError
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host
from ...storage.artifacts import Artifact
from ...storage.host_path import host_path
from ..instance_spec.device_names import require_device_name
from .crucible_disk import CrucibleDisk
from .file_system_disks import SECTOR, FatDisk
from .image_disk import ImageFormat, image_format_of
from .images import ImageFinder

__all__ = ["CrucibleDiskFactory"]

MIB: Final = 1 << 20
BLOCK_SIZES: Final = (512, 4096)


class CrucibleDiskFactory:
    """Creates replicated disks, and removes them when it is closed.

    It is to be opened before the factory of the VMs that get them, and so is closed after it.

    :param group: what the disks belong to, usually a test; their names are unique in it.
    :param made: receives each disk, for reports.
    :param images: returns what finds images on the host by their names; None if only paths name them.
    :param downstairs: as in `__call__`, for disks that do not say.
    """

    def __init__(
        self,
        host: Host,
        *,
        group: str,
        made: Callable[[CrucibleDisk], None],
        images: Callable[[AsyncAgentClient], ImageFinder] | None = None,
        downstairs: Path | str | None = None,
    ) -> None:
        self._host = host
        self._images = images
        self._downstairs = downstairs
        self._group = group
        self._made = made
        self._agent: AsyncAgentClient | None = None
        self.disks: list[CrucibleDisk] = []
        """All disks that were made, in that order."""

    @property
    def group(self) -> str:
        """The name of the disks' owner."""
        return self._group

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls,
        host: Host,
        *,
        group: str,
        made: Callable[[CrucibleDisk], None],
        images: Callable[[AsyncAgentClient], ImageFinder] | None = None,
        downstairs: Path | str | None = None,
        teardown: Callable[[CrucibleDiskFactory], Awaitable[None]] | None = None,
    ) -> AsyncIterator[CrucibleDiskFactory]:
        """A factory on a host, which is asked for nothing before the first disk.

        :param teardown: what is done with the factory in the end; `aclose` by default.
        """
        factory = cls(host, group=group, made=made, images=images, downstairs=downstairs)
        try:
            yield factory
        finally:
            try:
                if factory.disks:
                    await (teardown or cls.aclose)(factory)
            finally:
                if factory._agent is not None:
                    await factory._agent.aclose()

    async def __call__(
        self,
        name: str = "crucible-disk",
        *,
        size_mib: int = 1024,
        block_size: int = 4096,
        image: Path | str | Artifact | None = None,
        image_format: ImageFormat | None = None,
        fat: FatDisk | None = None,
        stall_timeout_s: float = 60.0,
        downstairs: Path | str | None = None,
    ) -> CrucibleDisk:
        """Make a disk with three replicas.

        :param size_mib: becomes a whole number of extents of 64 MiB, and is never smaller than the image.
        :param block_size: the size of its blocks in bytes, 512 or 4096.
        :param image: a read-only parent: what the disk holds at first. It must not change meanwhile. The name of an
            artifact in a catalog; the name of a guest, whose disk it is; an artifact; the path of an image.
        :param image_format: by default raw for a path and for what is stored as ``.raw`` or ``.img``, and what looks
            like a container is refused; else qcow2.
        :param fat: a file system that the disk holds at first, in all replicas; only its files, label and size count.
        :param stall_timeout_s: how many seconds the guest's requests wait, when fewer than two replicas are left. After
            that the VM fails.
        :param downstairs: a program with the command line of ``crucible-downstairs``, which a real ``propolis-server``
            needs: its path, or the name of an artifact; by default that of the settings, or else this project's own.
        :raises ConfigError: when it cannot be so, or there is a disk of that name.
        :raises ArtifactError: when the image is missing or broken.
        :raises CapabilityMissing: when the host lacks ``qemu-storage-daemon``.
        :raises ResourceExhausted: when there is no space for it.
        """
        self._check(name, size_mib, block_size)
        _check_fat(name, block_size, fat, has_image=image is not None)
        agent = self._agent = self._agent or await self._host.client()
        there = None if image is None else await self._on_host(agent, name, image)
        request = CreateVolume(
            name=name,
            group=self._group,
            size_bytes=size_mib * MIB,
            block_size=block_size,
            image=there,
            image_format=image_format or (None if isinstance(image, Path) else image_format_of(there or "")),
            contents=None if fat is None else fat.contents(),
            stall_timeout_s=stall_timeout_s,
            program=await self._program_on(agent, name, downstairs or self._downstairs),
        )
        created = await agent.create_volume(request)
        disk = CrucibleDisk(self._host, agent, created, name=name, block_size=block_size)
        self.disks.append(disk)
        self._made(disk)
        return disk

    def _check(self, name: str, size_mib: int, block_size: int) -> None:
        require_device_name("crucible disk", name)
        if any(disk.name == name for disk in self.disks):
            raise ConfigError(f"there is a crucible disk named {name!r} already", hint="give each disk its own name")
        if block_size not in BLOCK_SIZES:
            raise ConfigError(f"crucible disk {name!r}: block_size is {block_size}", hint="it is 512 or 4096")
        if size_mib < 1:
            raise ConfigError(f"crucible disk {name!r}: size_mib is {size_mib}", hint="it must be at least 1")

    async def _on_host(self, agent: AsyncAgentClient, name: str, image: Path | str | Artifact) -> str:
        if isinstance(image, Path):
            there = host_path(image, purpose=f"the image of crucible disk {name!r}")
            return await self._host.provide(Path(there), lambda line: None)
        if self._images is None:
            raise ConfigError(f"crucible disk {name!r}: this factory has no artifacts", hint="give an image's path")
        return await self._images(agent).path(image)

    async def _program_on(self, agent: AsyncAgentClient, name: str, program: Path | str | None) -> str | None:
        if program is None:
            return None
        what = f"the downstairs program of crucible disk {name!r},"
        if self._images is None:
            raise ConfigError(f"{what} {str(program)!r} cannot be found here", hint="use the factory of a run")
        hint = "give the path of a crucible-downstairs, or the name of an artifact"
        return await self._images(agent).program(program, what=what, hint=hint)

    async def aclose(self) -> None:
        """Remove all disks. Idempotent."""
        if self._agent is not None:
            await self._agent.remove(self.resources)

    @property
    def resources(self) -> ResourceIds:
        return ResourceIds(volumes=tuple(disk.id for disk in self.disks))

    async def detach(self) -> list[tuple[Host, ResourceIds]]:
        """Let go of all disks as they are, and return what they are."""
        return [(self._host, self.resources)]

    async def keep(self, *, reason: str, ttl_s: float) -> KeptListed:
        """Leave the disks to a person: they outlive this process."""
        assert self._agent is not None
        return await self._agent.keep(Keep(resources=self.resources, reason=reason, ttl_s=ttl_s))


def _check_fat(name: str, block_size: int, fat: FatDisk | None, *, has_image: bool) -> None:
    """
    :raises ConfigError: when a disk cannot hold a FAT file system at first, and is to.
    """
    if fat is None:
        return
    if has_image:
        raise ConfigError(f"crucible disk {name!r} has an image and a FAT file system", hint="choose one of them")
    if block_size != SECTOR:
        raise ConfigError(
            f"crucible disk {name!r}: a FAT file system has sectors of {SECTOR} bytes, not {block_size}",
            hint=f"give block_size={SECTOR}: guests mount no file system whose sectors are smaller than blocks",
        )
