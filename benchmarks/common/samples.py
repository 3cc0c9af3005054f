"""Samples: durations of one kind, and their statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

__all__ = ["milliseconds", "percentile", "ratio_of_medians", "spread", "timed_block"]


def percentile(samples_s: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least this share of all samples does not exceed (nearest rank)."""
    return sorted(samples_s)[max(0, math.ceil(share * len(samples_s)) - 1)]


def ratio_of_medians(ours_s: Sequence[float], floor_s: Sequence[float]) -> float:
    return median(ours_s) / median(floor_s)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def spread(samples_s: Sequence[float]) -> str:
    """Return the median with the smallest and the largest sample, which show the noise of a busy machine."""
    return f"{median(samples_s):.3f} s ({min(samples_s):.3f}-{max(samples_s):.3f})"


async def timed_block(act: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Run a function a number of times in sequence; return the duration of each run in seconds."""
    took_s = []
    for _ in range(count):
        began = time.perf_counter()
        await act()
        took_s.append(time.perf_counter() - began)
    return took_s
