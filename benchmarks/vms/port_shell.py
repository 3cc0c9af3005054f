"""Commands over a guest port: their round trip against a loop made by hand, and forks against those with a console."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Final

from pytest_propolis.vm.config import VmConfig

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import milliseconds, percentile, ratio_of_medians, spread, timed_block
from .files import PortFloor
from .fork import first_command_s

__all__ = ["measure"]

WARM_UP = 50
BLOCK = 50
BLOCKS = 20
ROUNDS = 15
ROUND_TRIP_BOUND = 1.5
FORK_BOUNDS: Final = {0: 0.85, 1: 0.75}
"""By how many forks stand by."""

PORT: Final = VmConfig(name="first", guest="micro", channel="port")
CONSOLE: Final = VmConfig(name="first", guest="micro", channel="console")

LOOP: Final = (
    b"(exec 9<>/dev/vport0p1; while IFS= read -r line <&9; do eval \"$line\" >&9; printf 'END%d\\n' $? >&9; done) &"
)


def measure(options: Options) -> list[Figure]:
    figures = [asyncio.run(_round_trip(options))]
    figures += [asyncio.run(_forks(standby, options)) for standby in FORK_BOUNDS]
    return figures


async def _round_trip(options: Options) -> Figure:
    """Blocks of both in turn."""
    ours: list[float] = []
    floor: list[float] = []
    async with Harness.open(options) as harness:
        vm = await harness.factory.start("port", guest="micro", channel="port")
        files, _ = await harness.files("micro")
        acceleration = (await harness.floor("micro"))._acceleration
        with PortFloor(files, acceleration=acceleration, directory=harness.directory) as bare:
            bare.start()
            bare.log_in()
            bare.start_loop()
            with bare.connect() as port:  # a port that nothing is connected to is at the end of its file
                bare.run(LOOP)
                await timed_block(lambda: vm.run("true"), WARM_UP)
                _by_hand(port, WARM_UP)
                for _ in range(options.repeated(BLOCKS)):
                    ours += await timed_block(lambda: vm.run("true"), BLOCK)
                    floor += _by_hand(port, BLOCK)
    measured, by_hand = percentile(ours, 0.50), percentile(floor, 0.50)
    return Figure(
        name=f'run("true") over a port, p50, n={len(ours)}',
        measured=milliseconds(measured),
        floor=milliseconds(by_hand),
        ratio=f"{measured / by_hand:.2f}",
        bound=f"<= {ROUND_TRIP_BOUND} x",
        met=measured <= ROUND_TRIP_BOUND * by_hand,
    )


def _by_hand(port: socket.socket, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        port.sendall(b"true\n")
        answer = b""
        while not answer.endswith(b"END0\n"):
            answer += port.recv(1 << 16)
        took.append(time.perf_counter() - began)
    return took


async def _forks(standby: int, options: Options) -> Figure:
    """Forks with a port and with a console in turn, each at an agent of its own, so that the one standing by is its."""
    ours: list[float] = []
    floor: list[float] = []
    async with (
        Harness.open(options, standby=standby) as over_port,
        Harness.open(options, standby=standby) as over_console,
    ):
        for harness, config in ((over_port, PORT), (over_console, CONSOLE)):
            vm = await harness.factory.start_config(config)  # makes the template
            await vm.aclose()
        for number in range(options.repeated(ROUNDS)):
            name = f"vm{number}"
            ours.append(await first_command_s(over_port, "micro", name, standby=bool(standby), channel="port"))
            floor.append(await first_command_s(over_console, "micro", name, standby=bool(standby), channel="console"))
            say(f"{standby=}: port {ours[-1]:.3f}, console {floor[-1]:.3f}, load {os.getloadavg()[0]:.1f}")
    ratio = ratio_of_medians(ours, floor)
    return Figure(
        name=f"fork to first command over a port, {standby} standing by, against the console, n={len(ours)}",
        measured=spread(ours),
        floor=spread(floor),
        ratio=f"{ratio:.2f}",
        bound=f"<= {FORK_BOUNDS[standby]} x",
        met=ratio <= FORK_BOUNDS[standby],
    )
