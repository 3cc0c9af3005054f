"""Test virtual machines with pytest.

The names below are what tests, fixtures and guest adapters are written with. Each is imported when it is first used,
because pytest imports this package before every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .agent_api.image_recipe import ImageRecipe
    from .console.commands import CommandResult
    from .console.console import Console
    from .coordination.group import NodeGroup
    from .coordination.node import Node
    from .errors import (
        AgentError,
        ApiError,
        ArtifactCorrupt,
        ArtifactError,
        ArtifactMissing,
        BootError,
        CapabilityMissing,
        CommandFailed,
        CommandTimeout,
        ConfigError,
        ConsoleClosed,
        ConsoleError,
        ConsoleTimeout,
        CoordinationError,
        CoordinationLost,
        CoordinationTimeout,
        FileTransferError,
        GuestPanicked,
        GuestWasReset,
        HostBusy,
        HostError,
        HostLost,
        MetricsMissing,
        MetricsTimeout,
        MigrationError,
        Poisoned,
        PropolisError,
        ResourceExhausted,
        SettingsError,
        ShellError,
        ShellLost,
        StateTimeout,
        TemplateError,
        UnknownGuest,
        VmError,
        VmStateError,
    )
    from .fixtures.vm_fixture import vm_fixture
    from .guests.adapter import GuestAdapter, GuestImage
    from .hosts.host import Host
    from .hosts.placement import Labels, NotSameAs
    from .oximeter.virtual_machine import VcpuState
    from .propolis_api import InstanceState
    from .settings import Settings
    from .storage.artifacts import Artifact
    from .storage.sources import LocalFile, WheelMember
    from .vm.config import DataDisk, Nic, VmConfig
    from .vm.disks.crucible_disk import CrucibleDisk, VolumeDisk
    from .vm.disks.crucible_disk_factory import CrucibleDiskFactory
    from .vm.disks.file_system_disks import CloudInitDisk, FatDisk
    from .vm.disks.image_disk import ImageDisk
    from .vm.factory import VmFactory
    from .vm.files.progress import Progress
    from .vm.lifecycle import Migrate, Reset, StopAndStart, lifecycle
    from .vm.metrics.metrics import Metrics
    from .vm.metrics.samples import Samples
    from .vm.networks.network import Network
    from .vm.vm import TestVm

__all__ = [
    "AgentError",
    "ApiError",
    "Artifact",
    "ArtifactCorrupt",
    "ArtifactError",
    "ArtifactMissing",
    "BootError",
    "CapabilityMissing",
    "CloudInitDisk",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "ConfigError",
    "Console",
    "ConsoleClosed",
    "ConsoleError",
    "ConsoleTimeout",
    "CoordinationError",
    "CoordinationLost",
    "CoordinationTimeout",
    "CrucibleDisk",
    "CrucibleDiskFactory",
    "DataDisk",
    "FatDisk",
    "FileTransferError",
    "GuestAdapter",
    "GuestImage",
    "GuestPanicked",
    "GuestWasReset",
    "Host",
    "HostBusy",
    "HostError",
    "HostLost",
    "ImageDisk",
    "ImageRecipe",
    "InstanceState",
    "Labels",
    "LocalFile",
    "Metrics",
    "MetricsMissing",
    "MetricsTimeout",
    "Migrate",
    "MigrationError",
    "Network",
    "Nic",
    "Node",
    "NodeGroup",
    "NotSameAs",
    "Poisoned",
    "Progress",
    "PropolisError",
    "Reset",
    "ResourceExhausted",
    "Samples",
    "Settings",
    "SettingsError",
    "ShellError",
    "ShellLost",
    "StateTimeout",
    "StopAndStart",
    "TemplateError",
    "TestVm",
    "UnknownGuest",
    "VcpuState",
    "VmConfig",
    "VmError",
    "VmFactory",
    "VmStateError",
    "VolumeDisk",
    "WheelMember",
    "lifecycle",
    "vm_fixture",
]

_HOMES: Final = {
    "Artifact": "storage.artifacts",
    "CloudInitDisk": "vm.disks.file_system_disks",
    "CommandResult": "console.commands",
    "Console": "console.console",
    "CrucibleDisk": "vm.disks.crucible_disk",
    "CrucibleDiskFactory": "vm.disks.crucible_disk_factory",
    "DataDisk": "vm.config",
    "FatDisk": "vm.disks.file_system_disks",
    "ImageDisk": "vm.disks.image_disk",
    "GuestAdapter": "guests.adapter",
    "GuestImage": "guests.adapter",
    "InstanceState": "propolis_api",
    "Labels": "hosts.placement",
    "LocalFile": "storage.sources",
    "Metrics": "vm.metrics.metrics",
    "Migrate": "vm.lifecycle",
    "Network": "vm.networks.network",
    "Nic": "vm.config",
    "Node": "coordination.node",
    "NodeGroup": "coordination.group",
    "NotSameAs": "hosts.placement",
    "Host": "hosts.host",
    "ImageRecipe": "agent_api.image_recipe",
    "Progress": "vm.files.progress",
    "Reset": "vm.lifecycle",
    "Samples": "vm.metrics.samples",
    "Settings": "settings",
    "StopAndStart": "vm.lifecycle",
    "TestVm": "vm.vm",
    "VcpuState": "oximeter.virtual_machine",
    "VmConfig": "vm.config",
    "VolumeDisk": "vm.disks.crucible_disk",
    "VmFactory": "vm.factory",
    "WheelMember": "storage.sources",
    "lifecycle": "vm.lifecycle",
    "vm_fixture": "fixtures.vm_fixture",
}
"""The module of each name that is not an error."""

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that this function knows

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
