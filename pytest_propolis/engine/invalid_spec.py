"""What can be wrong with an instance spec, before anything is made of it."""

from __future__ import annotations

__all__ = ["InvalidSpec", "SpecUnsupported"]


class InvalidSpec(Exception):
    """Raised when a spec contradicts itself or asks for what QEMU cannot give here: HTTP 400."""


class SpecUnsupported(Exception):
    """Raised when a spec has a component that this engine does not realise: HTTP 501."""
