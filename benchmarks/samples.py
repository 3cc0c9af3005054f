"""Samples: durations of one kind, and what is read from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["milliseconds", "percentile", "ratio_of_medians", "spread"]


def percentile(samples_s: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of all samples does not exceed (nearest rank)."""
    return sorted(samples_s)[max(0, math.ceil(share * len(samples_s)) - 1)]


def ratio_of_medians(ours_s: Sequence[float], floor_s: Sequence[float]) -> float:
    return median(ours_s) / median(floor_s)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def spread(samples_s: Sequence[float]) -> str:
    """The median with the smallest and the largest sample: how far a busy machine has pulled it about."""
    return f"{median(samples_s):.3f} s ({min(samples_s):.3f}-{max(samples_s):.3f})"
