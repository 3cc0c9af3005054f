"""A component of an instance spec: a device or a backend, wrapped with the name of its kind."""

from __future__ import annotations

from msgspec import Struct

from .backends import (
    BlobStorageBackend,
    CrucibleStorageBackend,
    DlpiNetworkBackend,
    FileStorageBackend,
    VirtioNetworkBackend,
)
from .devices import (
    BootSettings,
    MigrationFailureInjector,
    NvmeDisk,
    P9fs,
    PciPciBridge,
    QemuPvpanic,
    SerialPort,
    SoftNpuP9,
    SoftNpuPciPort,
    SoftNpuPort,
    VirtioDisk,
    VirtioNic,
    VirtioSocket,
)

__all__ = [
    "BlobStorageBackendComponent",
    "BootSettingsComponent",
    "Component",
    "CrucibleStorageBackendComponent",
    "DlpiNetworkBackendComponent",
    "FileStorageBackendComponent",
    "MigrationFailureInjectorComponent",
    "NvmeDiskComponent",
    "P9fsComponent",
    "PciPciBridgeComponent",
    "QemuPvpanicComponent",
    "SerialPortComponent",
    "SoftNpuP9Component",
    "SoftNpuPciPortComponent",
    "SoftNpuPortComponent",
    "VirtioDiskComponent",
    "VirtioNetworkBackendComponent",
    "VirtioNicComponent",
    "VirtioSocketComponent",
]


class _Wrapper(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """On the wire: ``{"type": …, "component": …}``."""


class VirtioDiskComponent(_Wrapper, frozen=True, tag="virtio_disk"):
    component: VirtioDisk


class NvmeDiskComponent(_Wrapper, frozen=True, tag="nvme_disk"):
    component: NvmeDisk


class VirtioNicComponent(_Wrapper, frozen=True, tag="virtio_nic"):
    component: VirtioNic


class SerialPortComponent(_Wrapper, frozen=True, tag="serial_port"):
    component: SerialPort


class PciPciBridgeComponent(_Wrapper, frozen=True, tag="pci_pci_bridge"):
    component: PciPciBridge


class QemuPvpanicComponent(_Wrapper, frozen=True, tag="qemu_pvpanic"):
    component: QemuPvpanic


class BootSettingsComponent(_Wrapper, frozen=True, tag="boot_settings"):
    component: BootSettings


class VirtioSocketComponent(_Wrapper, frozen=True, tag="virtio_socket"):
    component: VirtioSocket


class SoftNpuPciPortComponent(_Wrapper, frozen=True, tag="soft_npu_pci_port"):
    component: SoftNpuPciPort


class SoftNpuPortComponent(_Wrapper, frozen=True, tag="soft_npu_port"):
    component: SoftNpuPort


class SoftNpuP9Component(_Wrapper, frozen=True, tag="soft_npu_p9"):
    component: SoftNpuP9


class P9fsComponent(_Wrapper, frozen=True, tag="p9fs"):
    component: P9fs


class MigrationFailureInjectorComponent(_Wrapper, frozen=True, tag="migration_failure_injector"):
    component: MigrationFailureInjector


class CrucibleStorageBackendComponent(_Wrapper, frozen=True, tag="crucible_storage_backend"):
    component: CrucibleStorageBackend


class FileStorageBackendComponent(_Wrapper, frozen=True, tag="file_storage_backend"):
    component: FileStorageBackend


class BlobStorageBackendComponent(_Wrapper, frozen=True, tag="blob_storage_backend"):
    component: BlobStorageBackend


class VirtioNetworkBackendComponent(_Wrapper, frozen=True, tag="virtio_network_backend"):
    component: VirtioNetworkBackend


class DlpiNetworkBackendComponent(_Wrapper, frozen=True, tag="dlpi_network_backend"):
    component: DlpiNetworkBackend


Component = (
    VirtioDiskComponent
    | NvmeDiskComponent
    | VirtioNicComponent
    | SerialPortComponent
    | PciPciBridgeComponent
    | QemuPvpanicComponent
    | BootSettingsComponent
    | VirtioSocketComponent
    | SoftNpuPciPortComponent
    | SoftNpuPortComponent
    | SoftNpuP9Component
    | P9fsComponent
    | MigrationFailureInjectorComponent
    | CrucibleStorageBackendComponent
    | FileStorageBackendComponent
    | BlobStorageBackendComponent
    | VirtioNetworkBackendComponent
    | DlpiNetworkBackendComponent
)
"""Match it by the wrapper, ``case VirtioDiskComponent(disk)``, or by what it wraps, ``match entry.component``."""
