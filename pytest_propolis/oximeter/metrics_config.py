"""Where a producer of metrics listens, and where it registers."""

from __future__ import annotations

import msgspec

__all__ = ["MetricsConfig"]


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The address at which a server of VMs serves metrics, and the registry.

    :param host: the IP address to listen on, with any free port.
    :param registry: IP and port of the registry.
    """

    host: str
    registry: str
