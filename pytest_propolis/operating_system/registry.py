"""The operating systems on which this project runs, and the one on which it is running."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

from ..errors import CapabilityMissing
from .interface import OperatingSystem

__all__ = ["SYSTEMS", "system"]


def _linux() -> OperatingSystem:
    from .linux.system import linux

    return linux()


def _illumos() -> OperatingSystem:
    from .illumos.system import illumos

    return illumos()


SYSTEMS: Final[Mapping[str, Callable[[], OperatingSystem]]] = MappingProxyType({"linux": _linux, "sunos5": _illumos})
"""The implementations by `sys.platform`. A new one is a package beside these, and an entry here."""


@cache
def system() -> OperatingSystem:
    """Return the operating system on which this process runs.

    :raises CapabilityMissing: when this project has no implementation for it.
    """
    make = SYSTEMS.get(sys.platform)
    if make is None:
        raise CapabilityMissing(
            f"virtual machines are run on {' and '.join(SYSTEMS)}, not on {sys.platform}",
            hint="run the tests on a Linux machine; collecting them works here",
        )
    return make()
