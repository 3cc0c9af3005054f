"""The marker ``cold_boot``: the VMs of this test boot, because booting is what it is about."""

from __future__ import annotations

from typing import Final

__all__ = ["DESCRIPTION"]

DESCRIPTION: Final = "cold_boot: the VMs of this test boot from cold, instead of being forked from a booted guest"
"""For pytest's list of markers. The fixture `vm_factory` heeds it."""
