"""``await vm.run("true")``: one command's round trip over the serial port, against raw sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options
from ..common.samples import milliseconds, percentile, timed_block
from ..floors.bare_guest import BareGuest

__all__ = ["measure"]

WARM_UP = 50
BLOCK = 50
BLOCKS = 20
P50_BOUND_S = 0.002
P99_BOUND_S = 0.008


def measure(options: Options) -> list[Figure]:
    ours, floor = asyncio.run(_measure(options.repeated(BLOCKS), options))
    count = f"n={len(ours)}"
    return [
        _figure(f'run("true"), p50, {count}', ours, floor, share=0.50, bound_s=P50_BOUND_S),
        _figure(f'run("true"), p99, {count}', ours, floor, share=0.99, bound_s=P99_BOUND_S),
    ]


def _figure(name: str, ours: Sequence[float], floor: Sequence[float], *, share: float, bound_s: float) -> Figure:
    measured, by_hand = percentile(ours, share), percentile(floor, share)
    return Figure(
        name=name,
        measured=milliseconds(measured),
        floor=milliseconds(by_hand),
        ratio=f"{measured / by_hand:.2f}",
        bound=f"<= {bound_s * 1000:.0f} ms",
        met=measured <= bound_s,
    )


async def _measure(blocks: int, options: Options) -> tuple[list[float], list[float]]:
    """Measure blocks of both in turn."""
    ours: list[float] = []
    floor: list[float] = []
    async with Harness.open(options) as harness, harness.pair("micro") as (vm, bare):
        await timed_block(lambda: vm.run("true"), WARM_UP)
        _by_hand(bare, WARM_UP)
        for _ in range(blocks):
            ours += await timed_block(lambda: vm.run("true"), BLOCK)
            floor += _by_hand(bare, BLOCK)
    return ours, floor


def _by_hand(bare: BareGuest, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        bare.run(b"true")
        took.append(time.perf_counter() - began)
    return took
