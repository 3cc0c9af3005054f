"""The layout of a template: file names, and the markers that a fork's console shows."""

from __future__ import annotations

from typing import Final

__all__ = ["BOUNDARY", "MANIFEST_FILE", "MEMORY_FILE", "STATE_FILE", "blank_file", "disk_file"]

MEMORY_FILE: Final = "memory"
STATE_FILE: Final = "state"
MANIFEST_FILE: Final = "template.json"

BOUNDARY: Final = "[propolis] above: the boot of the template that this VM was forked from"
"""The line of a fork's console between what its template showed and what is its own."""


def disk_file(index: int) -> str:
    """The frozen disk's name beside the memory; in a fork, the name of its own overlay. Specs of templates use it."""
    return f"disk-{index}.qcow2"


def blank_file(index: int) -> str:
    """An empty overlay on a frozen disk: copying it takes a hundredth of the time of having one made."""
    return f"blank-{index}.qcow2"
