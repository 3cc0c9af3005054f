"""The disks of a VM that migrates in: used in place, or copied to its own disks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from ...agent_api.migration_report import DiskTransfer
from ...errors import PropolisError
from ...propolis_api import BlobStorageBackend, FileStorageBackend, InstanceSpec
from ...propolis_api.component import FileStorageBackendComponent
from ...storage.images.overlays import create_blank, create_overlay
from ..qemu.devices.disks import backend_nodes
from ..qemu.devices.host_file import HostFile
from ..qemu.machine import Machine
from .disks import DiskFacts, copy_timeout_s
from .failure import MigrationFailed
from .stream import private_listener

__all__ = ["ArrivingDisks"]

SOCKET_FD = "disks"


class ArrivingDisks:
    """The disks of one migration: `resolve`, start QEMU, `open`, and after copying `shut`. Close it in any case.

    :param directory: a private directory for the target's own disks.
    :param socket: the path of the socket that receives their contents, in a private directory.
    :param qemu_img: makes them.
    :param copy: copy every writable disk, even if it could be used in place.
    """

    def __init__(self, migration_id: UUID, *, directory: Path, socket: Path, qemu_img: Path, copy: bool) -> None:
        self._id = migration_id
        self._directory = directory
        self._qemu_img = qemu_img
        self._copy = copy
        self._facts: Mapping[str, DiskFacts] = {}
        self._nodes: dict[str, str] = {}
        self.socket = socket
        self.transfers: dict[str, DiskTransfer] = {}
        """How each disk is transferred, by backend."""
        self.blobs: dict[str, HostFile] = {}
        """The files of those blob backends whose contents are used in place."""
        self.files: list[Path] = []
        """The disks that were created."""

    @property
    def copied(self) -> list[str]:
        """The backends whose contents are copied."""
        return [key for key, transfer in self.transfers.items() if transfer.is_copied]

    @property
    def timeout_s(self) -> float:
        """The time limit of the transfer."""
        return copy_timeout_s(sum(self._facts[key].size_bytes for key in self.copied))

    async def resolve(self, spec: InstanceSpec, facts: Mapping[str, DiskFacts]) -> InstanceSpec:
        """Decide how each disk is transferred, create the missing disks, and return the spec with them.

        :param facts: where the disks are at the source, by backend.
        :raises MigrationFailed: when a disk cannot be transferred.
        """
        self._facts = facts
        self._nodes = backend_nodes(spec.components)
        components = dict(spec.components)
        for key, disk in facts.items():
            backend = components[key].component
            transfer = self.transfers[key] = self._transfer_of(key, backend, disk)
            if transfer is DiskTransfer.SHARED and isinstance(backend, BlobStorageBackend):
                self.blobs[key] = disk.layers[0].file
            elif transfer.is_copied and isinstance(backend, FileStorageBackend):
                path = await self._make(disk, transfer)
                components[key] = FileStorageBackendComponent(msgspec.structs.replace(backend, path=str(path)))
        return msgspec.structs.replace(spec, components=components)

    async def open(self, machine: Machine) -> None:
        """Open the copied disks for writing by the source.

        :raises MachineError: when QEMU refuses.
        :raises MigrationFailed: when the socket cannot be made.
        """
        keys = self.copied
        if not keys:
            return
        try:
            listener = private_listener(self.socket)
        except OSError as error:
            raise MigrationFailed(f"the disks cannot be copied: {self.socket}: {error}") from None
        with listener:
            await machine.send_fd(SOCKET_FD, listener.fileno())
        address = {"type": "fd", "data": {"str": SOCKET_FD}}
        await machine.execute("nbd-server-start", addr=address, **{"max-connections": len(keys)})
        for number, key in enumerate(keys):
            names = {"id": f"export{number}", "name": key, "node-name": self._nodes[key]}
            await machine.execute("block-export-add", type="nbd", writable=True, **names)

    async def shut(self, machine: Machine) -> None:
        """Stop serving them for writing.

        :raises MachineError: when QEMU does not.
        """
        if self.copied:
            await machine.execute("nbd-server-stop")
            self.socket.unlink(missing_ok=True)

    def close(self, *, keep: bool) -> None:
        """Idempotent.

        :param keep: whether to keep the disks, because the guest uses them now.
        """
        self.socket.unlink(missing_ok=True)
        if not keep:
            while self.files:
                self.files.pop().unlink(missing_ok=True)

    def _transfer_of(self, key: str, backend: Any, disk: DiskFacts) -> DiskTransfer:
        if isinstance(backend, BlobStorageBackend) and backend.readonly:
            return DiskTransfer.FROM_SPEC
        if (backend.readonly or not self._copy) and disk.is_here(readonly=backend.readonly):
            return DiskTransfer.SHARED
        if backend.readonly:
            path = disk.layers[0].file.path
            raise MigrationFailed(f"disk backend {key!r} is read-only, and its file {path} cannot be read here")
        if isinstance(backend, FileStorageBackend) and disk.image:
            return DiskTransfer.COPIED_OVERLAY
        return DiskTransfer.COPIED

    async def _make(self, disk: DiskFacts, transfer: DiskTransfer) -> Path:
        path = self._directory / f"disk-{self._id}-{len(self.files)}.qcow2"
        image = disk.image if transfer is DiskTransfer.COPIED_OVERLAY else None
        self.files.append(path)
        try:
            if image is None:
                await create_blank(qemu_img=self._qemu_img, image=path, size_bytes=disk.size_bytes)
            else:
                await create_overlay(
                    qemu_img=self._qemu_img,
                    backing=Path(image.file.path),
                    overlay=path,
                    backing_format=image.format,
                    size_bytes=disk.size_bytes,
                )
        except PropolisError as error:
            raise MigrationFailed(f"a disk of {disk.size_bytes} bytes cannot be made here: {error.message}") from None
        return path
