"""The volume fuzzer: random faults at random moments under a guest that writes and verifies; nothing may be lost.

More and other rounds by hand::

    PROPOLIS_VOLUME_ROUNDS=200 PROPOLIS_VOLUME_SEED=1 pytest tests/hazards/fuzzers/test_volume_fuzz.py
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from volume_checks import (
    SLOTS,
    all_active,
    begin_to_write,
    contents,
    replicas,
    stop_writing,
    wait_for_status,
    writes_more,
)

from pytest_propolis import AgentError, ApiError, CapabilityMissing, CrucibleDisk, TestVm

__all__ = ["fuzz_round"]

LONGEST_PAUSE_S = 1.0
MOST_FAULTS = 4
BLOCK = 4096

Fault = Callable[[CrucibleDisk, int], Awaitable[object]]


async def _restart(disk: CrucibleDisk, index: int) -> None:
    await disk.restart(index)


async def _hang_for_a_while(disk: CrucibleDisk, index: int) -> None:
    await disk.pause(index)
    await asyncio.sleep(LONGEST_PAUSE_S)
    await disk.resume(index)


async def _slow_down(disk: CrucibleDisk, index: int) -> None:
    with contextlib.suppress(AgentError, CapabilityMissing):  # it is dead, or a program
        await disk.slow(index, delay_ms=5)


async def _replace(disk: CrucibleDisk, index: int) -> None:
    with contextlib.suppress(ApiError):  # it is refused while another one is not there
        await disk.replace_downstairs(index)


FAULTS: dict[str, Fault] = {
    "kill": CrucibleDisk.kill,
    "restart": _restart,
    "disconnect": CrucibleDisk.disconnect,
    "hang": _hang_for_a_while,
    "slow": _slow_down,
    "replace": _replace,
}


async def fuzz_round(vm: TestVm, disk: CrucibleDisk, chance: random.Random) -> list[str]:
    """Run one round; return the faults that were injected.

    :raises AssertionError: when the guest has seen an error, a write that it was told of is gone, or replicas differ.
    """
    done = []
    await begin_to_write(vm)
    for _ in range(chance.randint(1, MOST_FAULTS)):
        await asyncio.sleep(chance.uniform(0, LONGEST_PAUSE_S))
        name, index = chance.choice(list(FAULTS)), chance.randrange(3)
        done.append(f"{name} {index}")
        await FAULTS[name](disk, index)
    await _heal(disk)
    await writes_more(vm)
    count = await stop_writing(vm)
    await wait_for_status(disk, all_active)
    first, *others = await replicas(disk)
    assert others == [first] * 2, f"the replicas differ after {done}"
    assert await _lost(disk, count) == [], f"writes are lost after {done}"
    return done


async def _heal(disk: CrucibleDisk) -> None:
    states = {item.address: item.state for item in (await disk.facts()).downstairs}
    for index, target in enumerate(disk.targets):
        if states[target] == "dead":
            await disk.restart(index)
        await disk.slow(index, delay_ms=0)


async def _lost(disk: CrucibleDisk, count: int) -> list[int]:
    """Those of the guest's last writes that are not in the first replica."""
    first = await contents(disk, 0)
    last = range(max(1, count - SLOTS + 1), count + 1)
    return [n for n in last if _number_at(first, n % SLOTS * BLOCK) != str(n).encode()]


def _number_at(replica: bytes, offset: int) -> bytes:
    return replica[offset : offset + BLOCK].partition(b"\n")[0]
