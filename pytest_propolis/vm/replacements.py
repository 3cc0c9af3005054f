"""What the target of a migration has in place of the source's components."""

from __future__ import annotations

from ..propolis_api import (
    CrucibleStorageBackend,
    CrucibleStorageBackendReplacement,
    InstanceSpec,
    MigrationFailureInjector,
    MigrationFailureInjectorReplacement,
    ReplacementComponent,
)

__all__ = ["replacements"]


def replacements(spec: InstanceSpec) -> dict[str, ReplacementComponent]:
    """Those components of a target's spec that are its own, whatever the source has."""
    found: dict[str, ReplacementComponent] = {}
    for key, wrapper in spec.components.items():
        match wrapper.component:
            case CrucibleStorageBackend() as backend:
                found[key] = CrucibleStorageBackendReplacement(backend)
            case MigrationFailureInjector() as injector:
                found[key] = MigrationFailureInjectorReplacement(injector)
    return found
