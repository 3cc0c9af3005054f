"""A server's configuration, like propolis-server's command line; together with a spec, it yields QEMU's arguments."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...agent_api.boot_source import BootSource, Firmware
from ...operating_system.child import Journal
from ...oximeter.registration import MetricsConfig
from ...propolis_api import InstanceProperties, InstanceSpec
from ..qemu.accelerator.probe import AcceleratorName
from ..qemu.binary import Qemu, find_firmware
from ..qemu.command_line import HostResources, qemu_arguments
from ..qemu.memory import GuestMemory, OwnMemory
from ..templates.restored_machine import RestoredMachine
from ..volumes.block_backend import BackendFactory
from .dropshot_errors import HttpError, initialization_failed

__all__ = ["ServerConfig"]

EFI_STUB_MAGIC: Final = b"MZ"
"""The magic number of a kernel that is also an EFI program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Configuration that propolis-server gets on its command line, and that a VM's spec cannot express.

    :param tag: an unguessable tag in the command line or environment of every process of this VM.
    :param qemu: QEMU's programs.
    :param accelerator: ``kvm`` or ``tcg``.
    :param boot: what the VM starts from.
    :param directory: a private directory for files that the VM needs while it exists.
    :param disk_directory: a private directory for disks, with enough space; `directory` if None.
    :param log_path: receives what QEMU prints.
    :param journal: records processes.
    :param display: whether the VM has a display, which costs a little.
    :param guest_ports: whether the VM has guest ports.
    :param backends: factories of block backends, by type of the component that requires one
        (`CrucibleStorageBackend`). A component without a factory is refused.
    :param memory: the file that holds the guest's memory; None for one that the server creates, with which a VM can
        migrate.
    :param fork: a started fork, which becomes the VM; None for a VM that boots.
    :param copy_disks: whether a VM that migrates in gets its own disks even if it could use the source's.
    :param inherited_variables: the firmware variables for a VM's first boot; those of new firmware if that file does
        not exist.
    :param metrics: where the VM's metrics are served, and registered; None for no metrics.
    :param address: where other servers and their clients find this one (`Endpoint.at`).
    """

    tag: str
    qemu: Qemu
    accelerator: AcceleratorName
    boot: BootSource
    directory: Path
    log_path: Path
    journal: Journal
    display: bool = False
    guest_ports: bool = False
    backends: Mapping[type, BackendFactory] = field(default_factory=dict)
    memory: GuestMemory | None = None
    fork: RestoredMachine | None = None
    copy_disks: bool = False
    inherited_variables: Path | None = None
    metrics: MetricsConfig | None = None
    address: str = ""
    disk_directory: Path | None = None

    @property
    def disks(self) -> Path:
        """The directory in which disks are created."""
        return self.disk_directory or self.directory

    @property
    def variables(self) -> Path:
        """The firmware's variables, which exist as long as the server: a VM that stops and starts keeps them."""
        return self.directory / "variables.fd"

    @property
    def display_socket(self) -> Path | None:
        """The socket of the display's VNC server; None without a display."""
        return self.directory / "vnc.sock" if self.display else None

    def arguments(
        self,
        properties: InstanceProperties,
        spec: InstanceSpec,
        *,
        memory: OwnMemory | None,
        nodes: Mapping[str, Mapping[str, Any]],
        blobs: Mapping[str, str],
        cpu_features: Collection[str] | None,
    ) -> list[str]:
        """Return QEMU's arguments for a VM.

        :param memory: its own memory; None for a file of the agent's.
        :param nodes: as in `HostResources`, like `blobs` and `cpu_features`.
        :raises InvalidSpec: naming the component at fault.
        :raises SpecUnsupported: naming the component that is not supported.
        :raises HttpError: when there is no firmware to boot from.
        """
        resources = HostResources(
            flash=self._flash(),
            memory=memory.guest_memory if memory else self.memory,
            nodes=nodes,
            blobs=blobs,
            cpu_features=cpu_features,
            display_socket=None if self.display_socket is None else str(self.display_socket),
            has_vsock=Path("/dev/vhost-vsock").exists(),
        )
        return qemu_arguments(
            spec=spec,
            properties=properties,
            boot=self.boot,
            accelerator=self.accelerator,
            tag=self.tag,
            resources=resources,
            guest_ports=self.guest_ports,
        )

    def _flash(self) -> dict[str, str]:
        if not isinstance(self.boot, Firmware) or not self.boot.uefi:
            return {}
        firmware = find_firmware()
        if firmware is None and self.boot.boot_rom is not None:
            return {"code": self.boot.boot_rom}
        if firmware is None:
            raise HttpError(initialization_failed("there is no UEFI firmware on this host: install the package ovmf"))
        if self.boot.kernel is not None:
            _require_efi_stub(Path(self.boot.kernel.kernel))
        code = Path(self.boot.boot_rom) if self.boot.boot_rom else firmware.code
        if code.stat().st_size != firmware.code.stat().st_size:
            return {"code": str(code)}  # it brings its variables along, or has none
        if not self.variables.exists():
            shutil.copyfile(self._first_variables() or firmware.variables, self.variables)
        return {"code": str(code), "variables": str(self.variables)}

    def _first_variables(self) -> Path | None:
        """Return the variables of the predecessor, if it has left any."""
        inherited = self.inherited_variables
        return inherited if inherited is not None and inherited.exists() else None


def _require_efi_stub(kernel: Path) -> None:
    with kernel.open("rb") as file:
        if file.read(len(EFI_STUB_MAGIC)) == EFI_STUB_MAGIC:
            return
    raise HttpError(
        initialization_failed(f"UEFI cannot start the kernel {kernel.name}: it was built without an EFI stub")
    )
