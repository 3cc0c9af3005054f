"""Placement: choose the host of a run for a VM or another resource."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, final

from ..errors import ConfigError
from .host import Host

__all__ = ["HostChoice", "HostConstraint", "Labels", "NotSameAs", "choose_host"]


class _Placed(Protocol):
    """Something that is on a host: a VM."""

    @property
    def host(self) -> Host:
        """The host that it is on."""


class HostConstraint(Protocol):
    """A condition on hosts."""

    def allows(self, host: Host) -> bool:
        """Return whether a host meets it."""


@final
@dataclass(frozen=True, slots=True)
class NotSameAs:
    """Another host than that of a VM, or than this one.

    :raises ConfigError: when it is given neither.
    """

    other: _Placed | Host

    def __post_init__(self) -> None:
        if not hasattr(self._host, "address"):
            raise ConfigError(f"NotSameAs: other is {reprlib.repr(self.other)}", hint="it must be a VM or a host")

    def allows(self, host: Host) -> bool:
        return host.name != self._host.name

    @property
    def _host(self) -> Host:
        return cast(Host, getattr(self.other, "host", self.other))

    def __str__(self) -> str:
        return f"another host than {self._host.name!r}"


@final
class Labels:
    """A host that has all of these labels."""

    def __init__(self, *labels: str) -> None:
        self.labels = frozenset(labels)

    def allows(self, host: Host) -> bool:
        return self.labels <= host.labels

    def __str__(self) -> str:
        return f"a host with the labels {', '.join(sorted(self.labels))}"


HostChoice = Host | HostConstraint
"""A test's placement of a resource: a host, or a condition on it."""


def choose_host(hosts: Sequence[Host], choice: HostChoice) -> Host:
    """Return the first suitable host.

    :raises ConfigError: when the run has none, naming those that it has.
    """
    for host in hosts:
        if host is choice or (hasattr(choice, "allows") and choice.allows(host)):
            return host
    known = ", ".join(host.name for host in hosts)
    wanted = str(choice) if hasattr(choice, "allows") else f"the host {getattr(choice, 'name', choice)!r}"
    raise ConfigError(
        f"this run has no host that will do: {wanted}",
        hint=f"it has {known}; --propolis-hosts local:2 makes two of this machine, a TOML file names others",
    )
