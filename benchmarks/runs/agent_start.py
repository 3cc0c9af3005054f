"""The start of an agent: from the request for the host's client, in a fresh process, to readiness."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from typing import Final

from ..common.figure import Figure
from ..common.options import Options, say
from ..common.samples import spread

__all__ = ["measure"]

BOUND_S: Final = 0.6
REPEATS: Final = 7

# A fresh process with what pytest has loaded when the first fixture is set up. The clock starts before the imports that
# the fixture then does, and stops when the agent has answered on the lifeline.
PROBE: Final = """
import asyncio, json, time
import pytest, pytest_asyncio, pytest_propolis.plugin
from pytest_propolis.settings import Settings

began = time.perf_counter()
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import run_token
imported = time.perf_counter()

async def main():
    host = LocalHost(Settings(), run_id=run_token(None))
    try:
        client = await host.client()
        ready = time.perf_counter()
        await client.info()
        informed = time.perf_counter()
        await client.aclose()
    finally:
        host.close()
    print(json.dumps([imported - began, ready - imported, ready - began, informed - ready]))

asyncio.run(main())
"""


def measure(options: Options) -> list[Figure]:
    repeats = options.repeated(REPEATS)
    say(f"agent_start: {repeats} times")
    imports, launch, total, platform = zip(*(_probe() for _ in range(repeats)), strict=True)
    return [
        Figure(
            name=f"agent start, n={repeats}",
            measured=spread(total),
            bound=f"<= {BOUND_S} s",
            met=median(total) <= BOUND_S,
        ),
        Figure(name="of that: imports in the client", measured=spread(imports)),
        Figure(name="of that: launch and handshake", measured=spread(launch)),
        Figure(name="after it: until QEMU and accelerator are known", measured=spread(platform)),
    ]


def _probe() -> Sequence[float]:
    finished = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, cwd="/")
    durations: list[float] = json.loads(finished.stdout)
    return durations
