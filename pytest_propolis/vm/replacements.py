"""Components that the target of a migration has instead of the source's."""

from __future__ import annotations

from typing import Final

from ..propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendReplacement,
    InstanceSpec,
    MigrationFailureInjector,
    MigrationFailureInjectorReplacement,
    ReplacementComponent,
    VirtioNetworkBackend,
    VirtioNetworkBackendReplacement,
)

__all__ = ["replacements"]

SWITCH: Final = "unix:"
"""Begins the link to a switch, which each host has at a path of its own."""


def replacements(spec: InstanceSpec) -> dict[str, ReplacementComponent]:
    """Return the components of a target's spec that replace the source's."""
    found: dict[str, ReplacementComponent] = {}
    for key, wrapper in spec.components.items():
        match wrapper.component:
            case CrucibleStorageBackend() as backend:
                found[key] = CrucibleStorageBackendReplacement(backend)
            case VirtioNetworkBackend() as network if network.vnic_name.startswith(SWITCH):
                found[key] = VirtioNetworkBackendReplacement(network)
            case MigrationFailureInjector() as injector:
                found[key] = MigrationFailureInjectorReplacement(injector)
    return found
