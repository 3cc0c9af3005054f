"""The options of the benchmarks."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pytest_propolis.settings import Accelerator

__all__ = ["Options", "say"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a measurement.

    :param alpine: measure the boot of Alpine Linux, too, which takes minutes.
    :param repeats: the number of repeats; None for each benchmark's default.
    :param accelerator: the accelerator of guests.
    """

    alpine: bool = False
    repeats: int | None = None
    accelerator: Accelerator = "tcg"

    def repeated(self, default: int) -> int:
        return default if self.repeats is None else self.repeats


def say(text: str) -> None:
    """Print a progress line to standard error, because the table goes to standard output."""
    print(text, file=sys.stderr, flush=True)
