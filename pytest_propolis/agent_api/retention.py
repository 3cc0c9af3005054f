"""Resources that are kept for inspection."""

from __future__ import annotations

import msgspec

__all__ = ["Kept"]


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a resource survives its owner, and until when (unix time in seconds; None: until it is asked for)."""

    reason: str
    until: float | None = None
