"""Commands over a guest port: their round trip against a loop made by hand, and forks against those with a console.

The same loop is measured behind the agent, too: with the agent between, no command can be quicker.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Final

from pytest_propolis.console.channels.guest_ports import PortStream
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
    "(exec 9<>/dev/vport0p{}; while IFS= read -r line <&9; do eval \"$line\" >&9; printf 'END%d\\n' $? >&9; done) &"
)
END: Final = b"END0\n"


def measure(options: Options) -> list[Figure]:
    figures = asyncio.run(_round_trips(options))
    figures += [asyncio.run(_forks(standby, options)) for standby in FORK_BOUNDS]
    return figures


async def _round_trips(options: Options) -> list[Figure]:
    """Blocks of all in turn."""
    ours: list[float] = []
    relayed: list[float] = []
    floor: list[float] = []
    async with Harness.open(options) as harness:
        vm = await harness.factory.start("port", guest="micro", channel="port")
        files, _ = await harness.files("micro")
        acceleration = (await harness.floor("micro"))._acceleration
        with PortFloor(files, acceleration=acceleration, directory=harness.directory) as bare:
            bare.start()
            bare.log_in()
            bare.start_loop()
            # A port that nothing is connected to is at the end of its file.
            with bare.connect() as port:
                async with vm._ports.taken() as (stream,):
                    bare.run(LOOP.format(1).encode())
                    await vm.run(LOOP.format(stream.number))
                    await timed_block(lambda: vm.run("true"), WARM_UP)
                    await timed_block(lambda: _behind_the_agent(stream), WARM_UP)
                    _by_hand(port, WARM_UP)
                    for _ in range(options.repeated(BLOCKS)):
                        ours += await timed_block(lambda: vm.run("true"), BLOCK)
                        relayed += await timed_block(lambda: _behind_the_agent(stream), BLOCK)
                        floor += _by_hand(port, BLOCK)
    return [
        _figure(f'run("true") over a port, p50, n={len(ours)}', ours, floor),
        _figure("the loop by hand behind the agent, p50", relayed, floor),
    ]


def _figure(name: str, ours: list[float], floor: list[float]) -> Figure:
    measured, by_hand = percentile(ours, 0.50), percentile(floor, 0.50)
    return Figure(
        name=name,
        measured=milliseconds(measured),
        floor=milliseconds(by_hand),
        ratio=f"{measured / by_hand:.2f}",
        bound=f"<= {ROUND_TRIP_BOUND} x",
        met=measured <= ROUND_TRIP_BOUND * by_hand,
    )


async def _behind_the_agent(stream: PortStream) -> None:
    await stream.send(b"true\n")
    answer = b""
    while not answer.endswith(END):
        answer += await stream.receive()


def _by_hand(port: socket.socket, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        port.sendall(b"true\n")
        answer = b""
        while not answer.endswith(END):
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
