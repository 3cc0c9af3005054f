"""A replicated disk, as a test uses it: created before its VM, outliving it, with fault injection."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from ...agent_api.volumes import DownstairsFault, FaultKind, VolumeCreated, VolumeListed
from ...errors import AgentError, ApiError, ConfigError
from ...field_checks import check_fields
from ...hosts.agent_clients.asynchronous import AsyncAgentClient
from ...hosts.agent_clients.synchronous import AgentClient
from ...hosts.host import Host
from ...propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendComponent,
    InstanceSpec,
    ReplaceResult,
    UpstairsInfo,
)
from ..instance_spec.device_names import require_device_name
from .kinds import AttachedDisk, Disk, DiskInterface, PciSlot

if TYPE_CHECKING:
    from ..guest_access import GuestAccess

__all__ = ["CrucibleDisk", "VolumeDisk", "with_volumes"]

CORRUPTED_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeDisk(Disk):
    """A replicated disk as a VM sees it: ``VmConfig(disks=(crucible_disk.disk(interface="nvme"),))``.

    :param name: its key in the instance spec.
    """

    volume: CrucibleDisk
    name: str
    interface: DiskInterface = "virtio"
    readonly: bool = False
    pci_slot: PciSlot | None = None

    def __post_init__(self) -> None:
        check_fields(self, subject=f"crucible disk {self.name!r}")
        require_device_name("crucible disk", self.name)

    def attached(self) -> AttachedDisk:
        """Return the disk as the server gets it, with the volume as it is now."""
        assert self.pci_slot is not None
        return AttachedDisk(
            name=self.name,
            interface=self.interface,
            readonly=self.readonly,
            block_size=self.block_size,
            pci_slot=self.pci_slot,
            backend=self.backend,
        )

    @property
    def block_size(self) -> int:
        return self.volume.block_size

    @property
    def backend_key(self) -> str:
        """The key of its backend in the instance spec."""
        return f"{self.name}-backend"

    @property
    def backend(self) -> CrucibleStorageBackendComponent:
        """The component that the server gets, as the volume is now."""
        backend = CrucibleStorageBackend(readonly=self.readonly, request_json=self.volume.vcr_json())
        return CrucibleStorageBackendComponent(backend)


def with_volumes(spec: InstanceSpec, disks: Iterable[VolumeDisk]) -> InstanceSpec:
    """Return the same spec with the replicated disks as they are now."""
    components = {**spec.components, **{disk.backend_key: disk.backend for disk in disks}}
    return msgspec.structs.replace(spec, components=components)


class CrucibleDisk:
    """A volume with three replicas, each served by a separate *downstairs*.

    Replicas are identified by their position, 0 to 2, in the volume construction request (VCR). All of them are on the
    host of the VMs. The fixture or factory that created the disk owns it.

    :param host: the host of its downstairs.
    :param name: its key in the specs of VMs, unless `disk` says otherwise.
    :param block_size: in bytes.
    """

    def __init__(
        self, host: Host, agent: AsyncAgentClient, created: VolumeCreated, *, name: str, block_size: int
    ) -> None:
        self.host = host
        self.name = name
        self.block_size = block_size
        self.id = created.id
        self.size_bytes: int = created.size_bytes
        self._agent = agent
        self._created = created
        self._id = uuid.uuid4()
        self._targets = list(created.targets)
        self._generation = 1
        self._has_black_hole = False
        self._vm: GuestAccess | None = None
        self._backend_key = ""
        self._generation_in_use = 0

    def __repr__(self) -> str:
        return f"<CrucibleDisk {self.name!r} ({self.size_bytes >> 20} MiB, generation {self._generation})>"

    # In a configuration

    def disk(
        self,
        name: str | None = None,
        *,
        interface: DiskInterface = "virtio",
        readonly: bool = False,
        pci_slot: int | None = None,
    ) -> VolumeDisk:
        """Return the disk for `VmConfig.disks`, with options.

        :param interface: an ``nvme`` disk does not let the guest wait when too few replicas are left: requests fail.
        """
        return VolumeDisk(
            volume=self, name=name or self.name, interface=interface, readonly=readonly, pci_slot=pci_slot
        )

    # The volume construction request

    @property
    def generation(self) -> int:
        """The generation of the next VM that uses the disk, which fences those with a lower one."""
        return self._generation

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses of the downstairs, as they are. The VCR differs from them while there is a black hole."""
        return tuple(self._targets)

    def set_generation(self, generation: int) -> None:
        """Set the generation of later VCRs. VMs that use the disk keep theirs."""
        self._generation = generation

    def enable_vcr_black_hole(self) -> None:
        """Replace the first downstairs in later VCRs with an address at which packets are dropped."""
        self._has_black_hole = True

    def disable_vcr_black_hole(self) -> None:
        """Name all downstairs in later VCRs again."""
        self._has_black_hole = False

    def vcr(self) -> dict[str, Any]:
        """Return the current volume construction request of the disk."""
        created, targets = self._created, list(self._targets)
        if self._has_black_hole:
            targets[0] = created.black_hole
        opts = {
            "id": str(created.upstairs_id),
            "target": targets,
            "lossy": False,
            "flush_timeout": None,
            "key": created.key,
            "cert_pem": None,
            "key_pem": None,
            "root_cert_pem": None,
            "control": None,
            "read_only": False,
        }
        region = {
            "type": "region",
            "block_size": self.block_size,
            "blocks_per_extent": created.extent_bytes // self.block_size,
            "extent_count": created.size_bytes // created.extent_bytes,
            "opts": opts,
            "generation": self._generation,
        }
        parent = created.parent and {
            "type": "file",
            "id": str(uuid.uuid4()),  # a new one for each request, as in PHD
            "block_size": self.block_size,
            "path": created.parent,
        }
        return {
            "type": "volume",
            "id": str(self._id),
            "block_size": self.block_size,
            "sub_volumes": [region],
            "read_only_parent": parent,
        }

    def vcr_json(self) -> str:
        return msgspec.json.encode(self.vcr()).decode()

    # In a VM

    async def replace_vcr(self) -> ReplaceResult:
        """Send the current VCR to the VM that uses the disk.

        :raises ApiError: when its server refuses it, with Crucible's reason.
        """
        result = await self._require_vm().client.issue_crucible_vcr(self._backend_key, self.vcr_json())
        self._generation_in_use = self._generation
        return result

    async def replace_downstairs(self, index: int, *, offline: bool = False) -> ReplaceResult:
        """Replace a downstairs with a new, empty one.

        Return when that is accepted: `status` shows the progress of the repair. Without a VM, the next one repairs it.

        :param offline: also if another replica is missing, or the disk has a read-only parent. Crucible refuses
            that, and so does the API; this bypasses both, and needs a server of this project.
        :raises ApiError: when the server refuses.
        :raises ConfigError: when there is no downstairs of that index.
        """
        old, generation = self._target(index), self._generation
        self._targets[index] = await self._agent.add_downstairs(self.id)
        self._generation += 1
        if self._vm is None or not await self._vm.is_active():
            return ReplaceResult.STARTED
        try:
            if not offline:
                return await self.replace_vcr()
            result = await self._agent.replace_unchecked(self._vm.id, self._backend_key, self.vcr_json())
        except BaseException as error:
            self._targets[index] = old
            if isinstance(error, ApiError):  # The server has refused it, and keeps the generation that it has.
                self._generation = generation
            raise
        self._generation_in_use = self._generation
        return result

    async def status(self) -> UpstairsInfo:
        """Query the status of the disk at the server of its VM.

        :raises ConfigError: when no VM uses it.
        :raises ApiError: when that VM is not active.
        """
        volume = (await self._require_vm().client.disk_volume_status(self._backend_key)).volume_info.volume
        assert isinstance(volume, msgspec.Struct)
        upstairs = volume.sub_volumes[0].upstairs
        assert isinstance(upstairs, UpstairsInfo)
        return upstairs

    async def snapshot(self, snapshot_id: UUID | None = None) -> UUID:
        """Snapshot all replicas; `facts` has their files. The guest is stopped meanwhile.

        :param snapshot_id: by default a random one, which is returned.
        :raises ApiError: when the server refuses.
        """
        snapshot_id = snapshot_id or uuid.uuid4()
        disk = self._backend_key.removesuffix("-backend")
        await self._require_vm().client.issue_crucible_snapshot(disk, snapshot_id)
        return snapshot_id

    # Faults

    async def kill(self, index: int) -> None:
        """Kill a downstairs. Its file stays."""
        await self._fault(index, FaultKind.KILL)

    async def restart(self, index: int) -> None:
        """Start a downstairs again with its file; kill it first if it runs."""
        await self._fault(index, FaultKind.RESTART)

    async def pause(self, index: int) -> None:
        """Hang a downstairs: its connections stay open, and it does not answer."""
        await self._fault(index, FaultKind.PAUSE)

    async def resume(self, index: int) -> None:
        """Resume a downstairs that hangs."""
        await self._fault(index, FaultKind.RESUME)

    async def disconnect(self, index: int) -> None:
        """Cut a downstairs off from the VM, which may connect again."""
        await self._fault(index, FaultKind.DISCONNECT)

    async def corrupt(self, index: int, offset: int, *, length: int = CORRUPTED_BYTES) -> None:
        """Overwrite a part of a replica's file with random bytes.

        :param offset: in bytes.
        """
        await self._fault(index, FaultKind.CORRUPT, offset=offset, length=length)

    async def slow(self, index: int, *, delay_ms: float) -> None:
        """Make a downstairs serve requests one by one, with this delay between; 0 for no delay."""
        await self._fault(index, FaultKind.SLOW, delay_ms=delay_ms)

    async def facts(self) -> VolumeListed:
        """Query its downstairs, including replaced ones, at the agent: state, file, generation, log."""
        return await self._agent.get_volume(self.id)

    def facts_now(self) -> VolumeListed:
        """As `facts`, for reports, which are made outside of any event loop.

        :raises AgentError: when the agent does not answer, or no longer has the disk.
        """
        socket = self._agent.endpoint("").uds
        assert socket is not None
        for volume in AgentClient(socket).volumes():
            if volume.id == self.id:
                return volume
        raise AgentError(f"crucible disk {self.name!r} was removed")

    # For VMs

    async def require_free(self) -> None:
        """
        :raises ConfigError: when a VM has the disk with this generation, naming that VM.
        """
        vm = self._vm
        if vm is not None and self._generation <= self._generation_in_use and await vm._may_have_disks():
            raise ConfigError(
                f"crucible disk {self.name!r} is attached to VM {vm.name!r}",
                hint="stop that VM first; or raise the generation with set_generation, which fences it off",
            )

    def require_reachable(self, host: Host) -> None:
        """
        :raises ConfigError: when a VM on that host cannot reach the downstairs, which listen on the loopback interface.
        """
        if host is not self.host and not (host.shares_files and self.host.shares_files):
            raise ConfigError(
                f"crucible disk {self.name!r} is on host {self.host.name}, and VMs on {host.name} cannot reach it:"
                " its downstairs listen on the loopback interface",
                hint=f"create the VM on {self.host.name}: a volume moves with its VM only between hosts of one machine",
            )

    def attach_to(self, vm: GuestAccess, backend_key: str) -> None:
        """Record that a VM uses the disk from now on."""
        self._vm, self._backend_key, self._generation_in_use = vm, backend_key, self._generation

    def _require_vm(self) -> GuestAccess:
        if self._vm is None:
            raise ConfigError(f"crucible disk {self.name!r} is attached to no VM", hint="attach it first")
        return self._vm

    async def _fault(self, index: int, kind: FaultKind, **options: Any) -> None:
        await self._agent.fault_downstairs(self.id, self._target(index), DownstairsFault(kind=kind, **options))

    def _target(self, index: int) -> str:
        """
        :raises ConfigError: when there is no such downstairs.
        """
        if not 0 <= index < len(self._targets):
            raise ConfigError(
                f"crucible disk {self.name!r} has no downstairs {index}", hint=f"choose 0 to {len(self._targets) - 1}"
            )
        return self._targets[index]
