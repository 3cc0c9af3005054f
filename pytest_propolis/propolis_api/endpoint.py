"""Where a VM's server listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Endpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server listens.

    :param base_url: what the paths of the API are put after; it may have a path itself: ``http://agent/vms/3f2a``.
    :param uds: the UNIX socket to connect to, whatever host the URL names; None: TCP.
    """

    base_url: str
    uds: Path | None = None

    def __str__(self) -> str:
        return f"{self.base_url} (socket {self.uds})" if self.uds else self.base_url
