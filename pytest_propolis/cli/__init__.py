"""The `propolis` command."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command with this process's arguments, and exit."""
    from .main import propolis  # here, because importing a package must be cheap

    propolis()
