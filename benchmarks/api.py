"""``GET /instance``: one request's round trip, from the test's client through the agent to the engine and back."""

from __future__ import annotations

import asyncio
import time

from pytest_propolis.vm.test_vm import TestVm

from .figure import Figure
from .house import House
from .options import Options, say
from .process_time import cpu_s
from .samples import milliseconds, percentile

__all__ = ["measure"]

WARM_UP = 50
BLOCK = 50
BLOCKS = 20
P50_BOUND_S = 0.0015


def measure(options: Options) -> list[Figure]:
    took, client_s, agent_s = asyncio.run(_measure(options.repeated(BLOCKS) * BLOCK, options))
    p50 = percentile(took, 0.50)
    return [
        Figure(
            name=f"GET /instance, p50, n={len(took)}",
            measured=milliseconds(p50),
            bound=f"<= {P50_BOUND_S * 1000:.1f} ms",
            met=p50 <= P50_BOUND_S,
        ),
        Figure(name="the same, p99", measured=milliseconds(percentile(took, 0.99))),
        Figure(name="the same, quickest", measured=milliseconds(min(took))),
        Figure(name="the same, the client's processor time", measured=milliseconds(client_s)),
        Figure(name="the same, the agent's processor time", measured=milliseconds(agent_s)),
    ]


async def _measure(count: int, options: Options) -> tuple[list[float], float, float]:
    """How long each took, and the processor time of one in the client and in the agent."""
    async with House.open(options) as house:
        say("api: asking a VM that does not run")
        vm = await house.factory.create("vm", guest="micro")
        await vm.ensure()
        agent = await house.host.client()
        pid = (await agent.info()).pid
        await agent.aclose()
        await _ask(vm, WARM_UP)
        before = time.process_time(), cpu_s(pid)
        took = await _ask(vm, count)
        return took, (time.process_time() - before[0]) / count, (cpu_s(pid) - before[1]) / count


async def _ask(vm: TestVm, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await vm.client.instance_get()
        took.append(time.perf_counter() - began)
    return took
