"""Errors in an instance spec, detected before anything is created."""

from __future__ import annotations

__all__ = ["InvalidSpec", "SpecUnsupported"]


class InvalidSpec(Exception):
    """Raised when a spec contradicts itself or requires what QEMU cannot provide here: HTTP 400."""


class SpecUnsupported(Exception):
    """Raised when a spec has a component that this engine does not implement: HTTP 501."""
