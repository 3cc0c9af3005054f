"""The backends of disks that are not files on this host."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ...engine.volumes.block_backend import BackendFactory, BlockBackend
from ...propolis_api import CrucibleStorageBackend

__all__ = ["BACKENDS"]


def _upstairs(*, key: str, component: Any, node_name: str) -> BlockBackend:
    from ...engine.volumes.upstairs import Upstairs  # a server without such disks starts sooner

    return Upstairs(key=key, component=component, node_name=node_name)


BACKENDS: Final[Mapping[type, BackendFactory]] = MappingProxyType({CrucibleStorageBackend: _upstairs})
"""By component type."""
