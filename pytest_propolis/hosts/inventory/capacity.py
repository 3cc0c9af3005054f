"""The capacity that a host of the inventory offers to the tests of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ...operating_system.figures import total_mib
from ...operating_system.registry import system
from ..host import HostSpec
from ..kinds import is_elsewhere

__all__ = ["VMS_PER_CPU", "cpus_of", "memory_mib_of", "slots_of", "vms_by_memory"]

VMS_PER_CPU: Final = 1.5
"""Test VMs per processor: guests are often idle, waiting for their tests or disks."""

CPUS_PER_CPU: Final = 4
"""Virtual CPUs per processor."""

SHARE: Final = 0.75
"""The share of a machine's memory that VMs may use."""


def slots_of(spec: HostSpec, specs: Sequence[HostSpec]) -> int:
    """Return the number of test VMs that a host runs at once; local hosts share the machine."""
    return spec.slots or max(1, round(VMS_PER_CPU * _processors() / _sharing(spec, specs)))


def memory_mib_of(spec: HostSpec, specs: Sequence[HostSpec]) -> int:
    """Return the memory that VMs may use on the host, in MiB."""
    return spec.memory_mib or int(SHARE * total_mib() / _sharing(spec, specs))


def vms_by_memory(memory_mib: int) -> int:
    """Return how many VMs of that size the memory of this machine has room for, but at least 1."""
    return max(1, int(SHARE * total_mib() / memory_mib))


def cpus_of(spec: HostSpec) -> int:
    """Return the number of virtual CPUs that the host runs at once."""
    return spec.cpus or CPUS_PER_CPU * _processors()


def _processors() -> int:
    return system().host.processors()


def _sharing(spec: HostSpec, specs: Sequence[HostSpec]) -> int:
    """Return the number of hosts of the inventory that share the host's machine."""
    return 1 if is_elsewhere(spec) else sum(not is_elsewhere(other) for other in specs)
