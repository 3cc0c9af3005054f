"""``GET /instance``: one request's round trip, from the test's client through the agent to the engine and back.

The floor is a bare uvicorn's "hello", asked by a bare client of the same kind, in turns with it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.process_time import cpu_s
from ..common.samples import milliseconds, percentile, timed_block
from ..floors.hello import hello_client

__all__ = ["measure"]

BLOCK = 50
BLOCKS = 20
P50_BOUND_S = 0.0015


def measure(options: Options) -> list[Figure]:
    times = asyncio.run(_measure(options.repeated(BLOCKS), options))
    p50, floor = percentile(times.took, 0.50), percentile(times.hello, 0.50)
    p99, floor99 = percentile(times.took, 0.99), percentile(times.hello, 0.99)
    return [
        Figure(
            name=f"GET /instance, p50, n={len(times.took)}",
            measured=milliseconds(p50),
            floor=milliseconds(floor),
            ratio=f"{p50 / floor:.2f}",
            bound=f"<= {P50_BOUND_S * 1000:.1f} ms",
            met=p50 <= P50_BOUND_S,
        ),
        Figure(
            name="the same, p99",
            measured=milliseconds(p99),
            floor=milliseconds(floor99),
            ratio=f"{p99 / floor99:.2f}",
        ),
        Figure(name="the same, quickest", measured=milliseconds(min(times.took)), floor=milliseconds(min(times.hello))),
        Figure(name="the same, the client's processor time", measured=milliseconds(times.client_s)),
        Figure(name="the same, the agent's processor time", measured=milliseconds(times.agent_s)),
    ]


@dataclass(slots=True)
class _Times:
    """The durations of both, and the processor time of one of our requests in the client and in the agent."""

    took: list[float] = field(default_factory=list)
    hello: list[float] = field(default_factory=list)
    client_s: float = 0.0
    agent_s: float = 0.0


async def _measure(blocks: int, options: Options) -> _Times:
    times = _Times()
    async with Harness.open(options) as harness, hello_client(harness.directory) as hello:
        say("api: asking a VM that does not run")
        vm = await harness.factory.create("vm", guest="micro")
        await vm.ensure()
        agent = await harness.host.client()
        pid = (await agent.info()).pid
        await agent.aclose()
        await timed_block(vm.client.instance_get, BLOCK)
        await timed_block(lambda: hello.request("GET", "/", timeout_s=None), BLOCK)
        for _ in range(blocks):
            before = time.process_time(), cpu_s(pid)
            times.took += await timed_block(vm.client.instance_get, BLOCK)
            times.client_s += time.process_time() - before[0]
            times.agent_s += cpu_s(pid) - before[1]
            times.hello += await timed_block(lambda: hello.request("GET", "/", timeout_s=None), BLOCK)
    times.client_s /= blocks * BLOCK
    times.agent_s /= blocks * BLOCK
    return times
