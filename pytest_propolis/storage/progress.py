"""Progress messages for the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress"]

Progress: TypeAlias = Callable[[str], None]
"""Receives a one-line message for each action. It is not called if there is nothing to do."""
