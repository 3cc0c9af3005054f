"""The time from the request for a VM to the result of its first command, against QEMU and sockets by hand."""

from __future__ import annotations

import asyncio
import os
import time
from statistics import median
from typing import NamedTuple

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.process_time import cpu_s
from ..common.samples import ratio_of_medians, spread

__all__ = ["measure"]

BOUND = 1.10
IMPLAUSIBLE = 0.95
"""Nothing with a floor beneath it is this much faster than the floor: then the machine was measured, not the code."""

MICRO_PAIRS = 9
ALPINE_PAIRS = 6


def measure(options: Options) -> list[Figure]:
    figures = asyncio.run(_measure("micro", options.repeated(MICRO_PAIRS), options))
    if options.alpine:
        figures += asyncio.run(_measure("alpine", options.repeated(ALPINE_PAIRS), options))
    return figures


async def _measure(guest: str, pairs: int, options: Options) -> list[Figure]:
    """Measure pairs of both, one guest at a time, in alternating order, after one warm-up pair."""
    ours: list[_Took] = []
    floor: list[_Took] = []
    async with Harness.open(options) as harness:
        for number in range(pairs + 1):
            if number % 2:
                floor.append(await _by_hand(harness, guest))
            ours.append(await _ours(harness, guest, f"vm-{number}"))
            if not number % 2:
                floor.append(await _by_hand(harness, guest))
            say(f"boot {guest} {number}/{pairs}: {ours[-1]}, by hand {floor[-1]}, load {os.getloadavg()[0]:.1f}")
    return _figures(guest, ours[1:], floor[1:])


def _figures(guest: str, ours: list[_Took], floor: list[_Took]) -> list[Figure]:
    mine, other = [took.wall_s for took in ours], [took.wall_s for took in floor]
    ratio = ratio_of_medians(mine, other)
    pairs = sorted(a / b for a, b in zip(mine, other, strict=True))
    paired = median(pairs)
    clear = min(ratio, paired) >= IMPLAUSIBLE and (ratio <= BOUND) == (paired <= BOUND)
    mine_cpu, other_cpu = [took.qemu_cpu_s for took in ours], [took.qemu_cpu_s for took in floor]
    return [
        Figure(
            name=f"boot of {guest} to the first result, n={len(ours)}",
            measured=spread(mine),
            floor=spread(other),
            ratio=f"{ratio:.3f}",
            bound=f"<= {BOUND:.2f} x" if clear else f"<= {BOUND:.2f} x: unclear, too noisy",
            met=ratio <= BOUND if clear else None,
        ),
        Figure(name="the same, pair by pair", ratio=f"{paired:.3f} ({pairs[0]:.2f}-{pairs[-1]:.2f})"),
        Figure(
            name="the same, QEMU's processor time",
            measured=spread(mine_cpu),
            floor=spread(other_cpu),
            ratio=f"{ratio_of_medians(mine_cpu, other_cpu):.3f}",
        ),
    ]


class _Took(NamedTuple):
    """The wall-clock time of a boot, and QEMU's processor time, which is the guest's own share."""

    wall_s: float
    qemu_cpu_s: float

    def __str__(self) -> str:
        return f"{self.wall_s:.2f} s ({self.qemu_cpu_s:.2f} s in QEMU)"


async def _ours(harness: Harness, guest: str, name: str) -> _Took:
    began = time.perf_counter()
    vm = await harness.factory.start(name, guest=guest, boot="cold")
    await vm.run("true")
    took_s = time.perf_counter() - began
    agent = await harness.host.client()
    try:
        (listed,) = [listed for listed in await agent.list_vms() if listed.name == name]
    finally:
        await agent.aclose()
    assert listed.pid is not None
    took = _Took(took_s, cpu_s(listed.pid))
    await vm.aclose()
    return took


async def _by_hand(harness: Harness, guest: str) -> _Took:
    bare = await harness.floor(guest)
    began = time.perf_counter()
    bare.start()
    with bare:
        bare.log_in()
        bare.start_loop()
        bare.run(b"true")
        return _Took(time.perf_counter() - began, cpu_s(bare.pid))
