"""Instance specs in a migration: components that are replaced, and those that cannot migrate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ...propolis_api import (
    CrucibleStorageBackendReplacement,
    InstanceSpec,
    MigrationFailureInjectorReplacement,
    NvmeDisk,
    ReplacementComponent,
    VirtioNetworkBackendReplacement,
)
from ...propolis_api.component import (
    CrucibleStorageBackendComponent,
    MigrationFailureInjectorComponent,
    VirtioNetworkBackendComponent,
)
from .failure import MigrationFailed

__all__ = ["replace_components", "require_migratable"]

# By replacement: the wrapper that the component must have at the source, and has here.
_WRAPPERS: Final[dict[type, Any]] = {
    CrucibleStorageBackendReplacement: CrucibleStorageBackendComponent,
    MigrationFailureInjectorReplacement: MigrationFailureInjectorComponent,
    VirtioNetworkBackendReplacement: VirtioNetworkBackendComponent,
}


def replace_components(spec: InstanceSpec, replacements: Mapping[str, ReplacementComponent]) -> InstanceSpec:
    """Return the source's spec with the target's own components.

    :raises MigrationFailed: when the source has no component of that key, or one of another kind.
    """
    components = dict(spec.components)
    for key, replacement in replacements.items():
        wrapper = _WRAPPERS[type(replacement)]
        if key not in components:
            raise MigrationFailed(f"replacement component {key!r} is not in the source's spec")
        if not isinstance(components[key], wrapper):
            kind, wanted = (type(item.component).__name__ for item in (components[key], wrapper(replacement.spec)))
            raise MigrationFailed(f"replacement component {key!r} is a {wanted}, and the source's is a {kind}")
        components[key] = wrapper(replacement.spec)
    return msgspec.structs.replace(spec, components=components)


def require_migratable(spec: InstanceSpec) -> None:
    """
    :raises MigrationFailed: naming a device whose state QEMU cannot transfer to another process.
    """
    for key, wrapper in spec.components.items():
        if isinstance(wrapper.component, NvmeDisk):
            raise MigrationFailed(f"disk {key!r} is an NVMe disk, which QEMU cannot migrate: make it a virtio disk")
