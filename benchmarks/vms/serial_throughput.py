"""The throughput from a guest's serial port to the test, against reading QEMU's socket by hand."""

from __future__ import annotations

import asyncio
import time

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options
from ..common.samples import ratio_of_medians, spread

__all__ = ["measure"]

BOUND = 0.8
REPEATS = 9
SIZE_KIB = 256
COMMAND = f"head -c {SIZE_KIB << 10} /dev/zero | tr '\\0' x"


def measure(options: Options) -> list[Figure]:
    ours, floor = asyncio.run(_measure(options.repeated(REPEATS), options))
    # Of throughputs, and so upside down for durations.
    ratio = 1 / ratio_of_medians(ours, floor)
    return [
        Figure(
            name=f"{SIZE_KIB} KiB of serial output, guest to test, n={len(ours)}",
            measured=spread(ours),
            floor=spread(floor),
            ratio=f"{ratio:.2f}",
            bound=f">= {BOUND} x",
            met=ratio >= BOUND,
        )
    ]


async def _measure(repeats: int, options: Options) -> tuple[list[float], list[float]]:
    """Measure both in turn, after one warm-up turn."""
    ours: list[float] = []
    floor: list[float] = []
    async with Harness.open(options) as harness, harness.pair("micro") as (vm, bare):
        for _ in range(repeats + 1):
            began = time.perf_counter()
            output = await vm.run_bytes(COMMAND)
            ours.append(time.perf_counter() - began)
            assert len(output) == SIZE_KIB << 10
            began = time.perf_counter()
            assert len(bare.run(COMMAND.encode())) == SIZE_KIB << 10
            floor.append(time.perf_counter() - began)
    return ours[1:], floor[1:]
