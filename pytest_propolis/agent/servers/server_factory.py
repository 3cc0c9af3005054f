"""Create the server of a VM: the engine in this process, or a separate program."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final, NamedTuple

from ...agent_api.agent_process import SOCKET_NAME, AgentConfig
from ...agent_api.messages import CreateVm
from ...engine.qemu.memory import GuestMemory
from ...engine.server.server import VmServer
from ...engine.server.server_config import ServerConfig
from ...ledger.entry import command_line_tag
from ...ledger.writer import LedgerWriter
from ...oximeter.registration import MetricsConfig
from ...propolis_api.connection.endpoint import Endpoint
from ..hypervisor import Hypervisor, HypervisorFinder
from ..templates.fork_starter import StartedFork
from .block_backends import BACKENDS
from .server_process import LOOPBACK, ServerProcess

__all__ = ["VmPaths", "address_of", "forked_server", "new_server"]

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


def new_server(
    agent: AgentConfig,
    request: CreateVm,
    paths: VmPaths,
    hypervisors: HypervisorFinder,
    *,
    hypervisor: Hypervisor | None,
    memory: GuestMemory | None,
    variables: Path | None,
) -> VmServer | ServerProcess:
    """Return the server for a VM: the engine, or the program that is requested, not yet started.

    :param hypervisor: what the engine runs the VM with; None if a program is requested.
    :param memory: the file for the guest's memory.
    :param variables: the firmware variables of the VM that it replaces.
    """
    if hypervisor is None:
        return _server_process(agent, request, paths, hypervisors)
    return VmServer(_server_config(agent, request, paths, hypervisor, memory=memory, variables=variables))


def forked_server(agent: AgentConfig, request: CreateVm, started: StartedFork) -> VmServer:
    """Return the engine for a VM that is a fork."""
    return VmServer(
        dataclasses.replace(
            started.config,
            log_path=Path(request.log_path or started.config.log_path),
            address=address_of(agent, started.id),
            backends=BACKENDS,
            metrics=_metrics_config(request),
        )
    )


def _server_config(
    agent: AgentConfig,
    request: CreateVm,
    paths: VmPaths,
    hypervisor: Hypervisor,
    *,
    memory: GuestMemory | None,
    variables: Path | None,
) -> ServerConfig:
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
        metrics=_metrics_config(request),
    )


def _server_process(
    agent: AgentConfig, request: CreateVm, paths: VmPaths, hypervisors: HypervisorFinder
) -> ServerProcess:
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


def _metrics_config(request: CreateVm) -> MetricsConfig | None:
    """Return the address at which the engine serves a VM's metrics, and the registry."""
    if request.metric_addr is None:
        return None
    return MetricsConfig(host=LOOPBACK, registry=request.metric_addr)


def address_of(agent: AgentConfig, vm_id: str) -> str:
    """Return the address at which other servers reach a VM's server in this agent."""
    return Endpoint(base_url=f"http://agent/vms/{vm_id}", uds=Path(agent.directory) / SOCKET_NAME).address
