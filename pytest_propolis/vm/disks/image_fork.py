"""A writable fork of an artifact, as a test uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from ...agent_api.disks import ImageForked
from ...errors import ConfigError
from ...field_checks import check_fields
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.host import Host
from ..instance_spec.device_names import require_device_name
from .kinds import AttachedDisk, Disk, DiskInterface, PciSlot

if TYPE_CHECKING:
    from ..instance import Instance

__all__ = ["ForkDisk", "ImageFork"]

TRANSFER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkDisk(Disk):
    """A fork as a VM sees it: ``VmConfig(disks=(fork.disk(interface="nvme"),))``. The VM is on the fork's host.

    :param name: its key in the instance spec.
    """

    fork: ImageFork
    name: str
    interface: DiskInterface = "virtio"
    readonly: bool = False
    block_size: Literal[512, 4096] = 512
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"disk {self.name!r}")
        require_device_name("disk", self.name)

    def attached(self) -> AttachedDisk:
        assert self.pci_slot is not None
        return AttachedDisk(
            name=self.name,
            path=str(self.fork.path),
            interface=self.interface,
            readonly=self.readonly,
            block_size=self.block_size,
            pci_slot=self.pci_slot,
        )


@final
class ImageFork:
    """A writable copy of an artifact, made in constant time where the host's file system can.

    Its path may lie on another machine: `read`, `write` and `sha256` go through the host. They see the disk as a guest
    does, whatever the format; no VM may use the fork meanwhile. One VM at a time may write to it.
    """

    def __init__(self, host: Host, agent: AsyncAgentClient, made: ImageForked) -> None:
        self.host = host
        """The host that it is on."""
        self._agent = agent
        self._made = made
        self._users: list[tuple[Instance, bool]] = []

    def __repr__(self) -> str:
        return f"<ImageFork of {self._made.origin} by {self.provider}>"

    @property
    def id(self) -> str:
        return self._made.id

    @property
    def provider(self) -> str:
        """The provider that created it: ``zfs``, ``reflink``, ``qcow2`` or ``copy``."""
        return self._made.provider

    @property
    def path(self) -> Path:
        """The file, or block device, on its host."""
        return Path(self._made.path)

    @property
    def format(self) -> str:
        """The format of that file: ``raw`` or ``qcow2``."""
        return self._made.format

    @property
    def origin(self) -> Path:
        """The image that it is a fork of, on its host."""
        return Path(self._made.origin)

    @property
    def dataset(self) -> str | None:
        """The ZFS dataset that it is; None elsewhere than on ZFS."""
        return self._made.dataset

    @property
    def size_bytes(self) -> int:
        """The size of the disk that a guest sees."""
        return self._made.size_bytes

    def disk(
        self,
        name: str = "artifact",
        *,
        interface: DiskInterface = "virtio",
        readonly: bool = False,
        block_size: Literal[512, 4096] = 512,
        pci_slot: int | None = None,
    ) -> ForkDisk:
        """Return the disk for `VmConfig.disks`. The fork itself may stand there for it.

        :param name: its key in the instance spec.
        """
        return ForkDisk(
            fork=self, name=name, interface=interface, readonly=readonly, block_size=block_size, pci_slot=pci_slot
        )

    async def snapshot(self, name: str) -> None:
        """Remember the content as it is now.

        :raises ConfigError: when it has a snapshot of that name, or the name cannot be one.
        """
        await self._agent.snapshot_fork(self.id, name)

    async def rollback(self, name: str) -> None:
        """Have the content of a snapshot again; later snapshots go.

        :raises ConfigError: when it has no such snapshot, or a VM has the fork.
        """
        await self.require_free()
        await self._agent.rollback_fork(self.id, name)

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of the disk; up to its end, if no length is given.

        :raises ConfigError: when that is beyond the end.
        """
        length = self.size_bytes - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise ConfigError(f"bytes {offset} to {offset + length} are outside a disk of {self.size_bytes} bytes")
        pieces = []
        while length:
            pieces.append(await self._agent.read_fork(self.id, offset, min(length, TRANSFER_BYTES)))
            offset, length = offset + len(pieces[-1]), length - len(pieces[-1])
        return b"".join(pieces)

    async def write(self, data: bytes, offset: int = 0) -> None:
        """Write bytes to the disk.

        :raises ConfigError: when that is beyond the end, or a VM has the fork.
        """
        await self.require_free()
        for begin in range(0, len(data), TRANSFER_BYTES):
            await self._agent.write_fork(self.id, offset + begin, data[begin : begin + TRANSFER_BYTES])

    async def sha256(self) -> str:
        """Return the hash of the whole disk, in lowercase hexadecimal."""
        return await self._agent.hash_fork(self.id)

    # For VMs

    async def require_free(self, *, readonly: bool = False) -> None:
        """
        :param readonly: whether it is enough that no VM writes to it.
        :raises ConfigError: when a VM has the fork, naming that VM.
        """
        self._users = [(vm, reads) for vm, reads in self._users if await vm._may_have_disks()]
        for vm, reads in self._users:
            if not (readonly and reads):
                raise ConfigError(
                    f"the fork of {self.origin} is a disk of VM {vm.name!r}",
                    hint="stop that VM first, or fork the image again",
                )

    def attach_to(self, vm: Instance, *, readonly: bool) -> None:
        """Record that a VM uses the fork from now on."""
        self._users.append((vm, readonly))
