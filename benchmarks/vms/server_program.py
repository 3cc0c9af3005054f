"""VMs at a server program, over TCP: its start, a request, and a command in the guest."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.propolis_api.connection.transport import http_client

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import milliseconds, percentile, spread, timed_block
from ..floors.hello import hello_client

__all__ = ["measure"]

PROGRAM: Final = str(Path(sys.executable).with_name("propolis-server-qemu"))

BLOCK: Final = 50
BLOCKS: Final = 20
STARTS: Final = 7
START_TIMEOUT_S: Final = 30.0
START_BOUND_S: Final = 0.6
REQUEST_BOUND: Final = 1.3
COMMAND_BOUND: Final = 1.2


def measure(options: Options) -> list[Figure]:
    blocks, starts = options.repeated(BLOCKS), options.repeated(STARTS)
    say("server_program: starting it")
    took = [asyncio.run(_start()) for _ in range(starts)]
    requests, floor = asyncio.run(_requests(options, blocks))
    program, agent = asyncio.run(_commands(options, blocks))
    return [
        Figure(
            name=f"propolis serve, from exec to the first answer, n={starts}",
            measured=spread(took),
            bound=f"<= {START_BOUND_S} s",
            met=percentile(took, 0.50) <= START_BOUND_S,
        ),
        _figure("GET /instance over TCP, p50, against a bare uvicorn", requests, floor, bound=REQUEST_BOUND),
        _figure('run("true") at a server program, p50, against the agent', program, agent, bound=COMMAND_BOUND),
    ]


def _figure(name: str, measured: list[float], floor: list[float], *, bound: float) -> Figure:
    ours, theirs = percentile(measured, 0.50), percentile(floor, 0.50)
    return Figure(
        name=f"{name}, n={len(measured)}",
        measured=milliseconds(ours),
        floor=milliseconds(theirs),
        ratio=f"{ours / theirs:.2f}",
        bound=f"<= {bound} x",
        met=ours / theirs <= bound,
    )


async def _start() -> float:
    """Measure the time until the program listens and answers."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [PROGRAM, "run", "bios", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        async with http_client(Endpoint(base_url="http://" + line.split(";")[0].rsplit(maxsplit=1)[-1])) as client:
            await client.request("GET", "/instance", timeout_s=START_TIMEOUT_S)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


async def _requests(options: Options, blocks: int) -> tuple[list[float], list[float]]:
    """Time requests of a server program and of a bare server, in turns."""
    ours: list[float] = []
    floor: list[float] = []
    async with Harness.open(options) as harness, hello_client(None) as hello:
        say("server_program: asking a VM that does not run")
        vm = await harness.factory.create("vm", guest="micro", server=PROGRAM)
        await vm.ensure()
        for _ in range(blocks):
            ours += await timed_block(vm.client.instance_get, BLOCK)
            floor += await timed_block(lambda: hello.request("GET", "/", timeout_s=None), BLOCK)
    return ours, floor


async def _commands(options: Options, blocks: int) -> tuple[list[float], list[float]]:
    """Time commands in a guest at a server program, and in one at the agent, in turns."""
    ours: list[float] = []
    floor: list[float] = []
    async with Harness.open(options, boot="cold") as harness:
        say("server_program: booting micro twice")
        program = await harness.factory.start("program", guest="micro", server=PROGRAM)
        agent = await harness.factory.start("agent", guest="micro")
        for _ in range(blocks):
            ours += await timed_block(lambda: program.run("true"), BLOCK)
            floor += await timed_block(lambda: agent.run("true"), BLOCK)
    return ours, floor
