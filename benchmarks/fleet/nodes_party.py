"""One process of parties for `nodes`: meets the others at barriers, and prints when."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time

from pytest_propolis.coordination.backends.address import connect_store, group_and_store
from pytest_propolis.coordination.barrier import Barrier
from pytest_propolis.coordination.group import NodeGroup
from pytest_propolis.coordination.node import Node

GRID_S = 0.3
"""Parties that arrive at once begin at the next multiple of this but one."""


async def main(address: str, numbers: list[int], mode: str) -> None:
    first, number, parties, rounds = numbers
    name, store = group_and_store(address)
    backend = await connect_store(store)
    async with await NodeGroup.attach(backend, name) as group:
        nodes = [await group.join(f"n{index}", ttl_s=30) for index in range(first, first + number)]
        # Each party's times: (began, passed) of every round.
        times = await asyncio.gather(*(_meet(node, parties, rounds, mode) for node in nodes))
        print(json.dumps(times), flush=True)
        await asyncio.gather(*(node.barrier("end", parties) for node in nodes))
    await backend.aclose()


async def _meet(node: Node, parties: int, rounds: int, mode: str) -> list[tuple[float, float]]:
    times = []
    await node.barrier("begin", parties)
    for _ in range(rounds):
        if mode == "at-once":
            moment_s = (math.ceil(time.monotonic() / GRID_S) + 1) * GRID_S
            await asyncio.sleep(moment_s - time.monotonic())
            began_s = moment_s
        elif node.name == f"n{parties - 1}":
            await _others_arrived(node.group, parties - 1)
            began_s = time.monotonic()
        else:
            began_s = 0.0
        await node.barrier("x", parties)
        times.append((began_s, time.monotonic()))
    return times


async def _others_arrived(group: NodeGroup, number: int) -> None:
    barrier = Barrier(group, "x")
    directory = f"barriers/x/at/{barrier.generation + 1}/"
    await group.mirror.until(lambda: len(group.mirror.below(directory)) == number or None, on=(directory,))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], [int(word) for word in sys.argv[2:6]], sys.argv[6]))
