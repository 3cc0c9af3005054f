"""Look up VMs by id, on this machine and on the hosts of an inventory."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from ...errors import ConfigError, HostError, PropolisError
from ...hosts.agent_clients.synchronous import running_agents
from ...hosts.kinds import is_elsewhere, open_connection
from ...hosts.known_directories import known_base_directories
from ...propolis_api.client import Endpoint
from ..hosts.remote_commands import run_on_hosts

if TYPE_CHECKING:
    from ...hosts.host import HostSpec

__all__ = ["LocatedVm", "locate_vm", "print_vms"]

PRINT_VMS: Final = "pytest_propolis.cli.vms.vm_lookup:print_vms"


@contextlib.asynccontextmanager
async def locate_vm(vm_id: str, hosts: tuple[HostSpec, ...] | None) -> AsyncIterator[tuple[LocatedVm, Endpoint]]:
    """Find a VM, and forward its server to this machine for the length of the block.

    If it is found, hosts that do not answer are only reported.

    :param vm_id: its id, or a prefix of it.
    :raises ConfigError: when the prefix does not identify exactly one VM.
    :raises HostError: when there is no such VM on the hosts that answer, and one does not.
    """
    here = await asyncio.to_thread(_find_local, vm_id) if _includes_this_machine(hosts) else []
    found: list[tuple[HostSpec | None, LocatedVm]] = [(None, vm) for vm in here]
    remote, errors = await _find_remote(vm_id, hosts or ())
    found += remote
    if errors and not found:
        raise errors[0]
    for error in errors:
        click.echo(str(error), err=True)
    if len(found) != 1:
        which = f"{len(found)} VMs have ids that begin with {vm_id!r}" if found else f"there is no VM {vm_id!r}"
        raise ConfigError(which, hint="`propolis ps` lists the VMs of this user; --hosts FILE is for those elsewhere")
    ((spec, vm),) = found
    async with contextlib.AsyncExitStack() as stack:
        socket, port = Path(vm.socket), vm.port
        if spec is not None:
            connection = await stack.enter_async_context(open_connection(spec))
            if port is None:
                socket = await connection.forward(vm.socket)
            else:
                port = await connection.forward_port(port)
        if port is None:
            yield vm, Endpoint(base_url=f"http://agent/vms/{vm.id}", uds=socket)
        else:
            yield vm, Endpoint(base_url=f"http://127.0.0.1:{port}")


class LocatedVm(msgspec.Struct, frozen=True, kw_only=True):
    """A VM, and the socket of its agent on its host."""

    id: str
    name: str
    socket: str
    is_kept: bool
    """Whether it was kept for a person."""

    port: int | None = None
    """Of the loopback interface, where its server is a program of its own."""


def _find_local(id_prefix: str) -> list[LocatedVm]:
    """Return the VMs of this machine whose ids begin with a prefix."""
    return [
        LocatedVm(id=vm.id, name=vm.name, socket=str(agent.socket), is_kept=vm.kept is not None, port=vm.port)
        for base in known_base_directories()
        for agent in running_agents(base)
        for vm in agent.vms()
        if id_prefix and vm.id.startswith(id_prefix)
    ]


def print_vms(arguments: list[str]) -> None:
    """Print the VMs of this machine as a JSON list. Runs on a host over SSH."""
    sys.stdout.buffer.write(msgspec.json.encode(_find_local(arguments[0])))
    sys.stdout.buffer.flush()


def _includes_this_machine(hosts: tuple[HostSpec, ...] | None) -> bool:
    return hosts is None or not all(is_elsewhere(spec) for spec in hosts)


async def _find_remote(
    id_prefix: str, hosts: tuple[HostSpec, ...]
) -> tuple[list[tuple[HostSpec, LocatedVm]], list[PropolisError]]:
    """Return the VMs that hosts over SSH have, and the errors of those that do not answer."""
    remote = [spec for spec in hosts if is_elsewhere(spec)]
    found: list[tuple[HostSpec, LocatedVm]] = []
    errors: list[PropolisError] = []
    for spec, answer in zip(remote, await run_on_hosts(remote, PRINT_VMS, [id_prefix]), strict=True):
        if isinstance(answer, PropolisError):
            errors.append(answer)
        elif answer.status != 0:
            errors.append(HostError(f"host {spec.name}: its VMs cannot be listed: {answer.stderr.strip()}"))
        else:
            found += [(spec, vm) for vm in msgspec.json.decode(answer.output, type=list[LocatedVm])]
    return found, errors
