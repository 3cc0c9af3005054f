"""The cost of an agent while its VMs are idle."""

from __future__ import annotations

import asyncio

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.process_time import cpu_s

__all__ = ["measure"]

BOUND = 0.01
GUEST_BOUND = 0.003
VMS = 8
AT_ONCE = 2
SECONDS = 20
SETTLE_S = 3


def measure(options: Options) -> list[Figure]:
    agent, guests = asyncio.run(_measure(options))
    return [
        Figure(
            name=f"agent with {VMS} idle VMs, {SECONDS} s",
            measured=f"{agent:.2%} of a core",
            bound=f"<= {BOUND:.0%}",
            met=agent <= BOUND,
        ),
        Figure(
            name="meanwhile: the QEMU of each",
            measured=f"{guests / VMS:.2%} of a core",
            bound=f"<= {GUEST_BOUND:.1%}",
            met=guests / VMS <= GUEST_BOUND,
        ),
    ]


async def _measure(options: Options) -> tuple[float, float]:
    async with Harness.open(options) as harness:
        for number in range(0, VMS, AT_ONCE):
            say(f"idle: booting {number + 1} to {number + AT_ONCE} of {VMS}")
            names = [f"vm-{number + each}" for each in range(AT_ONCE)]
            await asyncio.gather(*(harness.factory.start(name, guest="micro", memory_mib=128) for name in names))
        agent = await harness.host.client()
        try:
            pid = (await agent.info()).pid
            guests = [listed.pid for listed in await agent.list_vms() if listed.pid is not None]
        finally:
            await agent.aclose()
        await asyncio.sleep(SETTLE_S)
        before = cpu_s(pid), sum(map(cpu_s, guests))
        await asyncio.sleep(SECONDS)
        after = cpu_s(pid), sum(map(cpu_s, guests))
    return (after[0] - before[0]) / SECONDS, (after[1] - before[1]) / SECONDS
