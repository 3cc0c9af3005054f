"""Memory and processors of this host, from the operating system that this process runs on."""

from __future__ import annotations

from .registry import system

__all__ = ["available_mib", "idle_s", "total_mib"]


def total_mib() -> int:
    """Return the memory that this process and its children may use, in MiB."""
    return system().host.total_mib()


def available_mib() -> int:
    """Return the memory that can be allocated without swapping or killing anything, in MiB."""
    return system().host.available_mib()


def idle_s() -> float:
    """Return the idle time since boot in seconds, summed over all processors.

    :raises CapabilityMissing: when it is not known.
    """
    return system().host.idle_s()
