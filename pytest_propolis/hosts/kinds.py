"""The registry of host kinds: a kind is a module beside this one, and an entry here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final, NamedTuple, cast

from ..settings import Settings
from .host import Host, HostSpec, Machine

__all__ = ["HOST_KINDS", "HostKind", "is_elsewhere", "measure", "open_host"]

HostMaker = Callable[[HostSpec, Settings, str], Host]
Measure = Callable[[HostSpec], Awaitable[Machine]]


class HostKind(NamedTuple):
    """The modules of a kind of host, imported when the first host of the kind is requested.

    :param module: its function ``open_host(spec, settings, run_id)`` makes the host.
    :param measure_module: the module whose function ``measure(spec)`` queries the size of the host's machine; None if
        that is this machine.
    """

    module: str
    measure_module: str | None = None


HOST_KINDS: Final[Mapping[str, HostKind]] = MappingProxyType(
    {"local": HostKind("local"), "ssh": HostKind("ssh_host", measure_module="ssh.host_connection")}
)


def open_host(spec: HostSpec, settings: Settings, run_id: str) -> Host:
    """Create a host of an inventory, without connecting.

    :param run_id: the id of the run on this host.
    """
    module = import_module(f".{HOST_KINDS[spec.kind].module}", __package__)
    return cast(HostMaker, module.open_host)(spec, settings, run_id)


def is_elsewhere(spec: HostSpec) -> bool:
    """Return whether a host is another machine than this one."""
    return HOST_KINDS[spec.kind].measure_module is not None


async def measure(spec: HostSpec) -> Machine:
    """Query the size of a host that is another machine.

    :raises HostError: when it cannot be reached, or does not answer as it should.
    """
    name = HOST_KINDS[spec.kind].measure_module
    assert name is not None
    return await cast(Measure, import_module(f".{name}", __package__).measure)(spec)
