"""Progress, as it is told to a person."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress"]

Progress: TypeAlias = Callable[[str], None]
"""Is told, in one line, what is being done. Nothing is said when there is nothing to do."""
