"""Servers of VMs: the engine in the agent, a program that the agent starts, or an external server."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from ...agent_api.messages import CreateVm
from ...agent_api.server_program import ENGINE_PROGRAM, SERVER_HINT, ServerProgram, unreadable_disk
from ...errors import AgentError, ApiError, CapabilityMissing, ConfigError
from ...hosts.host import log_path_on
from ...propolis_api.client import PropolisClient
from ...propolis_api.connection.endpoint import Endpoint
from ...settings import ENGINE
from ...storage.progress import Progress
from ..config import VmConfig
from ..disks.images import ImageFinder
from ..migration import TERMINAL, Report
from ..timings import Timings
from .admission import retry_while_busy
from .host_session import HostSession

__all__ = [
    "Served",
    "disk_reader",
    "open_server",
    "qemu_log",
    "require_engine",
    "require_same_devices",
    "require_served",
]

LEAVE_IT_OUT: Final = "leave it out, or mark the test with @pytest.mark.requires(server='engine')"


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A server for one VM.

    :param vm_id: the VM's id at its agent; empty where no agent knows of it.
    :param log_path: the file on this machine that has the server's failures; None where no agent knows of it.
    :param migrations: asks the server how its latest migrations went; None where it does not say.
    """

    endpoint: Endpoint
    vm_id: str = ""
    log_path: Path | None = None
    migrations: Report | None = None


async def open_server(
    server: str | Path,
    request: CreateVm,
    *,
    session: HostSession,
    log_dir: Path,
    start_timeout_s: float,
    images: ImageFinder,
    taken: contextlib.AsyncExitStack,
    phases: Timings,
    progress: Progress,
) -> Served:
    """Return a server for a VM, which is removed when `taken` is closed.

    :param server: what serves the VM, as in `VmConfig`.
    :param request: what the agent is asked for, but for the log and the program.
    :param start_timeout_s: how long a program may take to answer.
    :raises ConfigError: when there is no such server, or it has a VM already.
    :raises CapabilityMissing: when it cannot boot the VM, or read its disks.
    :raises HostError: when a program does not start.
    """
    host, agent = session.host, session.agent
    if isinstance(server, str) and "://" in server:
        if request.qcow2_disks:
            raise unreadable_disk(server, request.qcow2_disks[0])
        return Served(endpoint=await _free_server(server, vm=request.name))
    program, log = None, qemu_log(log_dir, request.name)
    if server != ENGINE:
        path = await _program_on(server, images)
        program = ServerProgram(path=path, start_timeout_s=start_timeout_s)
        log = log_dir / f"{request.name}.server.log"
    request = msgspec.structs.replace(request, log_path=log_path_on(host, log), program=program)
    created = await retry_while_busy(request.name, partial(agent.create_vm, request), phases, progress=progress)
    session.own_vm(created.id, taken, log_path=log)
    if created.port is not None:
        port = await host.forward_port(created.port)
        return Served(endpoint=Endpoint(base_url=f"http://127.0.0.1:{port}"), vm_id=created.id, log_path=log)
    return Served(
        endpoint=agent.endpoint(created.path),
        vm_id=created.id,
        log_path=log,
        migrations=partial(agent.migrations, created.path),
    )


async def disk_reader(server: str | Path, images: ImageFinder) -> str | None:
    """Return the reader for which the agent creates a VM's disks: `CreateDisk.reader`.

    :raises ConfigError: when there is no such program.
    """
    if server == ENGINE:
        return None
    if isinstance(server, str) and "://" in server:
        return ""
    return await _program_on(server, images)


def qemu_log(directory: Path, name: str) -> Path:
    """Return the path of the log of a VM's QEMU."""
    return directory / f"{name}.qemu.log"


def require_served(config: VmConfig, server: str | Path) -> None:
    """
    :raises CapabilityMissing: when a VM needs the engine in the agent, and is to be served by something else.
    """
    if config.display:
        require_engine("display=True", vm=config.name, server=server)
    if config.channel == "port":
        require_engine('channel="port"', vm=config.name, server=server)


def require_engine(what: str, *, vm: str, server: str | Path, hint: str = LEAVE_IT_OUT) -> None:
    """
    :param what: the requested feature, as the test names it.
    :raises CapabilityMissing: when the VM is not served by the engine in the agent.
    """
    if server != ENGINE:
        raise CapabilityMissing(f"{what} needs the engine, and the VM is served by {server}", vm=vm, hint=hint)


def require_same_devices(name: str, server: str | Path, *, display: bool, guest_ports: bool) -> None:
    """
    :param name: the name of a VM that is to replace another one with these devices.
    :raises CapabilityMissing: when it needs the engine in the agent for them, and is to be served by something else.
    """
    if display:
        hint = "start the VM that it replaces without a display"
        require_engine("a successor with a display", vm=name, server=server, hint=hint)
    if guest_ports:
        hint = 'start the VM that it replaces with channel="console"'
        require_engine("a successor with guest ports", vm=name, server=server, hint=hint)


async def _program_on(server: str | Path, images: ImageFinder) -> str:
    """Return the path of a server program on a host.

    :raises ConfigError: when there is none.
    """
    if server == ENGINE_PROGRAM:
        return ENGINE_PROGRAM
    return await images.program(server, what="the server program", hint=SERVER_HINT)


async def _free_server(url: str, *, vm: str) -> Endpoint:
    """Return the endpoint of a server that runs already.

    :raises ConfigError: when it has a VM, or is no address of a server.
    :raises AgentError: when it does not answer.
    """
    try:
        endpoint = Endpoint.at(url)
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a server: {error}", vm=vm, hint=SERVER_HINT) from None
    async with PropolisClient(endpoint, vm=vm) as client:
        try:
            instance = (await client.instance_get()).instance
        except AgentError as error:
            raise AgentError(
                f"the server {url} does not answer: {error.message}", vm=vm, hint="start it, or correct the URL"
            ) from None
        except ApiError as error:
            if error.request_id is None:
                raise
            return endpoint  # it has no VM
    if instance.state not in TERMINAL:
        raise ConfigError(
            f"the server {url} has a VM already: {instance.properties.name!r}, {instance.state.value}",
            vm=vm,
            hint="a server has one VM at a time: stop that one, or run one test at a time on this server",
        )
    return endpoint
