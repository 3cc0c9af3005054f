"""The host's memory, as the kernel tells."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_mib", "total_mib"]


def available_mib() -> int:
    """How much could be used without anything being swapped out or killed, in MiB."""
    return _read("MemAvailable")


def total_mib() -> int:
    return _read("MemTotal")


def _read(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) >> 10
    raise OSError(f"/proc/meminfo has no {name}")
