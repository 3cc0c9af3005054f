"""Create the server of a VM: the engine in this process, or a separate program."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from ...agent_api.agent_process import SOCKET_NAME, AgentConfig
from ...agent_api.messages import CreateVm
from ...engine.qemu.memory import GuestMemory
from ...engine.server.server_config import ServerConfig
from ...ledger.entry import command_line_tag
from ...ledger.writer import LedgerWriter
from ...oximeter.metrics_config import MetricsConfig
from ...propolis_api.connection.endpoint import Endpoint
from ..hypervisor import Hypervisor, HypervisorFinder
from .block_backends import BACKENDS
from .server_process import LOOPBACK, ServerProcess

__all__ = ["VmPaths", "address_of", "metrics_config", "server_config", "server_process"]

QEMU_LOG: Final = "qemu.log"
"""QEMU's log in the VM's directory, unless the client names another path."""


class VmPaths(NamedTuple):
    """The directories of a VM's server, and the writer that records them."""

    vm_id: str
    directory: Path
    disk_directory: Path
    writer: LedgerWriter

    def log_path(self, request: CreateVm) -> Path:
        return Path(request.log_path or self.directory / QEMU_LOG)


def server_config(
    agent: AgentConfig,
    request: CreateVm,
    paths: VmPaths,
    hypervisor: Hypervisor,
    *,
    memory: GuestMemory | None,
    variables: Path | None,
) -> ServerConfig:
    """Return the engine's configuration for a VM.

    :param memory: the file for the guest's memory.
    :param variables: the firmware variables of the VM that it replaces.
    """
    return ServerConfig(
        tag=f"{command_line_tag(agent.run)}{paths.vm_id}",
        qemu=hypervisor.qemu,
        accelerator=hypervisor.accelerator.name,
        boot=request.boot,
        directory=paths.directory,
        log_path=paths.log_path(request),
        journal=paths.writer,
        display=request.display,
        guest_ports=request.guest_ports,
        memory=memory,
        copy_disks=request.copy_disks,
        inherited_variables=variables,
        address=address_of(agent, paths.vm_id),
        disk_directory=paths.disk_directory,
        backends=BACKENDS,
        metrics=metrics_config(request),
    )


def server_process(
    agent: AgentConfig, request: CreateVm, paths: VmPaths, hypervisors: HypervisorFinder
) -> ServerProcess:
    """Return the server program for a VM, not yet started."""
    assert request.program is not None

    async def own_options() -> tuple[str, ...]:
        hypervisor = await hypervisors.find()
        return "--qemu", str(hypervisor.qemu.system), "--accelerator", hypervisor.accelerator.name

    return ServerProcess(
        request.program,
        boot=request.boot,
        qcow2_disks=request.qcow2_disks,
        own_options=own_options,
        directory=paths.directory,
        disk_directory=paths.disk_directory,
        log_path=paths.log_path(request),
        journal=paths.writer,
        base=Path(agent.directory).parent,
        metric_addr=request.metric_addr,
    )


def metrics_config(request: CreateVm) -> MetricsConfig | None:
    """Return the address at which the engine serves a VM's metrics, and the registry."""
    if request.metric_addr is None:
        return None
    return MetricsConfig(host=LOOPBACK, registry=request.metric_addr)


def address_of(agent: AgentConfig, vm_id: str) -> str:
    """Return the address at which other servers reach a VM's server in this agent."""
    return Endpoint(base_url=f"http://agent/vms/{vm_id}", uds=Path(agent.directory) / SOCKET_NAME).address
