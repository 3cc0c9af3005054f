"""The registry of host kinds: a kind is a module beside this one, and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from types import MappingProxyType
from typing import Final, NamedTuple, cast

from ..settings import Settings
from .host import Host, HostConnection, HostSpec

__all__ = ["HOST_KINDS", "HostKind", "is_elsewhere", "open_connection", "open_host"]

HostMaker = Callable[[HostSpec, Settings, str], Host]
Connect = Callable[[HostSpec], AbstractAsyncContextManager[HostConnection]]


class HostKind(NamedTuple):
    """The modules of a kind of host, imported when the first host of the kind is requested.

    :param module: its function ``open_host(spec, settings, run_id)`` makes the host.
    :param connection_module: the module whose function ``open_connection(spec)`` connects commands to the host's
        machine; None if that is this machine.
    :param joins: whether its machines connect to the run, which listens for them, and not the run to them.
    """

    module: str
    connection_module: str | None = None
    joins: bool = False

    @property
    def is_elsewhere(self) -> bool:
        """Whether its hosts are other machines than this one."""
        return self.connection_module is not None


HOST_KINDS: Final[Mapping[str, HostKind]] = MappingProxyType(
    {
        "local": HostKind("local"),
        "ssh": HostKind("ssh_host", connection_module="ssh.host_connection"),
        "joined": HostKind("joined.host", connection_module="joined.host", joins=True),
    }
)


def open_host(spec: HostSpec, settings: Settings, run_id: str) -> Host:
    """Create a host of an inventory, without connecting.

    :param run_id: the id of the run on this host.
    """
    module = import_module(f".{HOST_KINDS[spec.kind].module}", __package__)
    return cast(HostMaker, module.open_host)(spec, settings, run_id)


def is_elsewhere(spec: HostSpec) -> bool:
    """Return whether a host is another machine than this one."""
    return HOST_KINDS[spec.kind].is_elsewhere


def open_connection(spec: HostSpec) -> AbstractAsyncContextManager[HostConnection]:
    """Connect to a host that is another machine, for the length of the block.

    :raises SettingsError: when one of its options is wrong.
    :raises HostError: when it cannot be reached.
    """
    name = HOST_KINDS[spec.kind].connection_module
    assert name is not None
    return cast(Connect, import_module(f".{name}", __package__).open_connection)(spec)
