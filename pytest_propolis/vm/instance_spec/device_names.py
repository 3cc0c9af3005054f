"""Names of a VM's devices, which are keys of its instance spec."""

from __future__ import annotations

import re
from typing import Final

from ...errors import ConfigError
from ...propolis_api import SerialPortNumber

__all__ = [
    "BACKEND_SUFFIX",
    "BOOT_DISK",
    "BOOT_SETTINGS",
    "FAILURE_INJECTOR",
    "NAME",
    "NAME_HINT",
    "require_device_name",
]

BOOT_DISK: Final = "boot-disk"
"""The name of the disk that holds the guest's system, as in PHD."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

NAME_HINT: Final = "letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit"

BOOT_SETTINGS: Final = "boot-settings"
FAILURE_INJECTOR: Final = "migration-failure"
BACKEND_SUFFIX: Final = "-backend"

RESERVED_KEYS: Final = frozenset(
    (BOOT_DISK, BOOT_SETTINGS, FAILURE_INJECTOR, *(number.value for number in SerialPortNumber))
)
"""The keys of components that every spec may have: no device of a test can have one of these names."""


def require_device_name(kind: str, name: str) -> None:
    """
    :raises ConfigError: when a device's name is malformed, or the key of another component of the spec.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{kind}: {name!r} cannot be its name", hint=NAME_HINT)
    if name in RESERVED_KEYS or name.endswith(BACKEND_SUFFIX):
        raise ConfigError(
            f"{kind}: {name!r} cannot be its name: the instance spec uses it for another component",
            hint=f"not {', '.join(sorted(RESERVED_KEYS))}, nor anything that ends in {BACKEND_SUFFIX}",
        )
