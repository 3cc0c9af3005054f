"""Linux as an operating system."""

from __future__ import annotations

from ..interface import OperatingSystem
from .children import LinuxChildren
from .host import LinuxHost
from .processes import LinuxProcesses

__all__ = ["linux"]


def linux() -> OperatingSystem:
    """Return the Linux on which this process runs."""
    return OperatingSystem(name="Linux", processes=LinuxProcesses(), children=LinuxChildren(), host=LinuxHost())
