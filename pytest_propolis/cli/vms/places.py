"""Where VMs are that a person names by their ids."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ...errors import ConfigError, HostError, PropolisError
from ...hosts.agent_client import running_agents
from ...hosts.known_directories import known_base_directories
from ...propolis_api.client import Endpoint
from ..hosts import visited

if TYPE_CHECKING:
    from ...hosts.host import HostSpec

__all__ = ["Place", "located", "tell_places"]

TELL_PLACES: Final = "pytest_propolis.cli.vms.places:tell_places"


@contextlib.asynccontextmanager
async def located(vm_id: str, hosts: tuple[HostSpec, ...] | None) -> AsyncIterator[tuple[Place, Endpoint]]:
    """Find a VM, and have its server within reach for the length of the block.

    :param vm_id: its id, or the beginning of it.
    :raises ConfigError: when it is not one VM.
    """
    here = await asyncio.to_thread(_places, vm_id) if _includes_this_machine(hosts) else []
    places: list[tuple[HostSpec | None, Place]] = [(None, place) for place in here]
    places += await _remote_places(vm_id, hosts or ())
    if len(places) != 1:
        which = f"{len(places)} VMs have ids that begin with {vm_id!r}" if places else f"there is no VM {vm_id!r}"
        raise ConfigError(which, hint="`propolis ps` lists the VMs of this user; --hosts FILE is for those elsewhere")
    ((spec, place),) = places
    async with contextlib.AsyncExitStack() as stack:
        socket, port = Path(place.socket), place.port
        if spec is not None:
            from ...hosts.ssh.visit import visit

            visited = await stack.enter_async_context(visit(spec))
            if port is None:
                socket = await visited.forward(place.socket)
            else:
                port = await visited.forward_port(port)
        if port is None:
            yield place, Endpoint(base_url=f"http://agent/vms/{place.id}", uds=socket)
        else:
            yield place, Endpoint(base_url=f"http://127.0.0.1:{port}")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A VM, and the socket of its agent on its host."""

    id: str
    name: str
    socket: str
    is_kept: bool
    """Whether it was kept for a person."""

    port: int | None = None
    """Of the loopback interface, where its server is a program of its own."""


def _places(wanted: str) -> list[Place]:
    """Return the VMs of this machine whose ids begin so."""
    return [
        Place(id=vm.id, name=vm.name, socket=str(agent.socket), is_kept=vm.kept is not None, port=vm.port)
        for base in known_base_directories()
        for agent in running_agents(base)
        for vm in agent.vms()
        if wanted and vm.id.startswith(wanted)
    ]


def tell_places(arguments: list[str]) -> None:
    """Print what `_places` finds, as one JSON list: run on a host over SSH."""
    sys.stdout.buffer.write(msgspec.json.encode(_places(arguments[0])))
    sys.stdout.buffer.flush()


def _includes_this_machine(hosts: tuple[HostSpec, ...] | None) -> bool:
    return hosts is None or any(spec.kind == "local" for spec in hosts)


async def _remote_places(wanted: str, hosts: tuple[HostSpec, ...]) -> list[tuple[HostSpec, Place]]:
    remote = [spec for spec in hosts if spec.kind != "local"]
    found = []
    for spec, answer in zip(remote, await visited(remote, TELL_PLACES, [wanted]), strict=True):
        if isinstance(answer, PropolisError):
            raise answer
        if answer.status != 0:
            raise HostError(f"host {spec.name}: its VMs cannot be listed: {answer.complaint.strip()}")
        found += [(spec, place) for place in msgspec.json.decode(answer.output, type=list[Place])]
    return found
