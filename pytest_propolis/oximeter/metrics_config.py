"""Where a producer of metrics listens, and where it registers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MetricsConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """The address at which a server of VMs serves metrics, and the registry.

    :param host: the IP address to listen on, with any free port.
    :param registry: IP and port of the registry.
    """

    host: str
    registry: str
