"""How long nodes wait, and how long they may be silent, where nothing else is asked for."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_TIMEOUT_S", "GROUP_TTL_S", "NODE_TTL_S"]

DEFAULT_TIMEOUT_S: Final = 300.0
GROUP_TTL_S: Final = 60.0
NODE_TTL_S: Final = 5.0
