"""The disks that clients of the agent own: overlays, forks of images, replicated volumes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ...agent_api.agent_process import AgentConfig
from ...agent_api.disks import CreateDisk, DiskCreated, ForkImage
from ...agent_api.messages import CreateVm
from ...agent_api.volumes import CreateVolume, VolumeCreated, VolumeListed
from ...errors import AgentError, CapabilityMissing
from ...ledger.ledger import Ledger
from ...ledger.writer import LedgerWriter
from ...operating_system.registry import system
from ..client_resources import ClientResources
from ..hypervisor import HypervisorFinder
from ..servers.program_help import QCOW2, help_names
from .disk_images import allowed_image_directories, is_to_be_converted, make_image, make_raw_copy
from .disk_space import DiskSpace
from .downstairs.kinds import downstairs_kind
from .image_forks import OwnedFork, fork_of, require_fork
from .raw_disks import fill_last_block, make_blank, raw_fork
from .volumes import OwnedVolume, create_volume

__all__ = ["DiskRegistry"]

OWN_OPTION: Final = "--kernel"
"""An option of this project's own server, which no other has."""


class DiskRegistry:
    """Creates and removes disks for clients. Each is in the ledger before it is created.

    :param resources_of: returns what a client owns; raises `AgentError` for one without a lifeline.
    :param all_resources: returns what all clients own.
    """

    def __init__(
        self,
        config: AgentConfig,
        ledger: Ledger,
        hypervisors: HypervisorFinder,
        space: DiskSpace,
        *,
        resources_of: Callable[[str], ClientResources],
        all_resources: Callable[[], Iterable[ClientResources]],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._hypervisors = hypervisors
        self._space = space
        self._resources_of = resources_of
        self._all_resources = all_resources

    async def create_disk(self, client: str, request: CreateDisk) -> DiskCreated:
        """Create a copy-on-write overlay on an image, or an empty disk; a raw one for a server that reads no others.

        :raises ArtifactError: when the image is missing or broken.
        :raises ResourceExhausted: when there is no space left.
        """
        if system().host.engine_obstacle is not None:
            return await self._create_raw_disk(client, request)
        qemu_img = (await self._hypervisors.find()).qemu.img
        if not await _reads_qcow2(request.reader):
            return await self._create_raw_disk(client, request, qemu_img=qemu_img)
        owned = self._resources_of(client)
        disk_id = secrets.token_hex(8)
        path = self._space.path_of(f"{disk_id}.qcow2")
        with owned.writer.creating("file", path) as entry:
            await make_image(request, qemu_img, path, allowed=allowed_image_directories(self._config))
            if owned.left:
                raise AgentError(f"client {client!r} left while its disk was made")
        owned.disks[disk_id] = entry
        return DiskCreated(id=disk_id, path=str(path))

    async def _create_raw_disk(self, client: str, request: CreateDisk, *, qemu_img: Path | None = None) -> DiskCreated:
        """Create a raw disk: an empty one, a fork of a raw image, or the contents of another image.

        :param qemu_img: what converts images; None where there is no QEMU: then only raw ones can be forked.
        """
        if qemu_img is not None and is_to_be_converted(request):
            return await self._convert_disk(client, request, qemu_img)
        if request.image is not None:
            fork = await self.fork_image(client, raw_fork(request))
            fill_last_block(fork.fork.path, request.block_size)
            return DiskCreated(id=fork.id, path=str(fork.fork.path))
        owned = self._resources_of(client)
        disk_id = secrets.token_hex(8)
        path = self._space.path_of(f"{disk_id}.raw")
        with owned.writer.creating("file", path) as entry:
            make_blank(path, request.size_bytes or 0)
        owned.disks[disk_id] = entry
        return DiskCreated(id=disk_id, path=str(path))

    async def _convert_disk(self, client: str, request: CreateDisk, qemu_img: Path) -> DiskCreated:
        """Create a raw disk with the contents of an image that is not raw."""
        owned = self._resources_of(client)
        disk_id = secrets.token_hex(8)
        path = self._space.path_of(f"{disk_id}.raw")
        with owned.writer.creating("file", path) as entry:
            await make_raw_copy(request, qemu_img, path, allowed=allowed_image_directories(self._config))
            fill_last_block(path, request.block_size)
            if owned.left:
                raise AgentError(f"client {client!r} left while its disk was made")
        owned.disks[disk_id] = entry
        return DiskCreated(id=disk_id, path=str(path))

    async def fork_image(self, client: str, request: ForkImage) -> OwnedFork:
        """Create a writable fork of an image, with the best provider available at its location: `fork_of`."""
        has_engine = system().host.engine_obstacle is None
        qemu_img = (await self._hypervisors.find()).qemu.img if has_engine else None
        owned = self._resources_of(client)
        writer = LedgerWriter(self._ledger, owned.writer.owner)
        allowed = allowed_image_directories(self._config)
        fork = await fork_of(request, space=self._space, writer=writer, qemu_img=qemu_img, allowed=allowed)
        if owned.left:
            await fork.remove()
            raise AgentError(f"client {client!r} left while its image was forked")
        owned.forks[fork.id] = fork
        return fork

    def find_fork(self, client: str, fork_id: str) -> OwnedFork:
        """
        :raises AgentError: when the client has no such fork.
        """
        return require_fork(self._resources_of(client).forks.get(fork_id), fork_id)

    async def remove_disk(self, client: str, disk_id: str) -> None:
        """Remove a disk or a fork, after any VMs of the client that are shutting down have closed it.

        Idempotent.
        """
        owned = self._resources_of(client)
        await owned.closings()
        owned.remove_disk(disk_id)
        await owned.remove_fork(disk_id)

    async def create_volume(self, client: str, request: CreateVolume) -> VolumeCreated:
        """Create a replicated volume with running downstairs.

        :raises ArtifactError: when its image is missing or broken, is not of its format, or names files elsewhere.
        :raises CapabilityMissing: when the host lacks a program for it.
        :raises ResourceExhausted: when there is no space left.
        """
        kind = await downstairs_kind(request, self._hypervisors)
        owned = self._resources_of(client)
        writer = LedgerWriter(self._ledger, owned.writer.owner)
        volume = await create_volume(
            request,
            kind=kind,
            parent=self._space.directory(),
            writer=writer,
            client=client,
            allowed=allowed_image_directories(self._config),
        )
        if owned.left:
            await volume.close()
            raise AgentError(f"client {client!r} left while its volume was made")
        owned.volumes[volume.id] = volume
        return volume.created()

    async def add_downstairs(self, client: str, volume_id: str) -> str:
        """Start another downstairs of a volume, with an empty file; return its address."""
        return (await self.find_volume(client, volume_id).add_downstairs(blank=True)).address

    def find_volume(self, client: str, volume_id: str) -> OwnedVolume:
        """
        :raises AgentError: when the client has no such volume.
        """
        volume = self._resources_of(client).volumes.get(volume_id)
        if volume is None:
            raise AgentError(f"there is no volume {volume_id}", hint="it was removed, or belongs to another client")
        return volume

    async def require_server_for(self, owned: ClientResources, request: CreateVm) -> None:
        """
        :raises CapabilityMissing: when a VM has a volume of this project's downstairs, whose protocol its server lacks.
        """
        program = request.program
        if program is None:
            return
        for volume in owned.volumes.values():
            is_used = any(downstairs.address in request.downstairs for downstairs in volume.downstairs)
            if is_used and volume.request.program is None and not await help_names(program.path, OWN_OPTION):
                raise CapabilityMissing(
                    f"{program.path} needs downstairs of Crucible's, and those of crucible disk {volume.request.name!r}"
                    " are this project's",
                    hint="give --propolis-crucible-downstairs, or crucible_disk_factory(downstairs=…)",
                )

    def list_volumes(self) -> list[VolumeListed]:
        return [volume for owned in self._all_resources() for volume in owned.listed_volumes()]

    async def remove_volume(self, client: str, volume_id: str) -> None:
        """Remove a volume, after any VMs of the client that are shutting down have closed it. Idempotent."""
        owned = self._resources_of(client)
        await owned.closings()
        await owned.remove_volume(volume_id)


async def _reads_qcow2(reader: str | None) -> bool:
    """Return whether the server of a disk reads qcow2: the engine does, and programs whose help names it."""
    return reader is None or (reader != "" and await help_names(reader, QCOW2))
