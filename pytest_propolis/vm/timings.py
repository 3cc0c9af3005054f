"""The durations of a VM's steps up to its first command."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["Timings"]


class Timings:
    """Steps by name, in seconds, in the order in which they ended."""

    def __init__(self, took_s: Mapping[str, float] | None = None) -> None:
        self.took_s: dict[str, float] = dict(took_s or {})

    def __str__(self) -> str:
        return ", ".join(f"{name} {took_s:.3f} s" for name, took_s in self.took_s.items())

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Measure the block. The first time counts."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.took_s.setdefault(name, time.perf_counter() - began)
