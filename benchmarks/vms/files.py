"""Files into a guest and out of it: over guest ports, against `cat` through one made by hand, and over the console."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from pytest_propolis.vm.vm import TestVm

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread
from ..floors.bare_guest import MicroFloor

__all__ = ["measure"]

SIZE = 100_000_000
TEXT_BYTES = 2_000_000
REPEATS = 3
PORT_BOUND = 0.7
CONSOLE_BOUND = 3.0
MANY_BOUND = 3.0


class PortFloor(MicroFloor):
    """The guest ``micro`` with one virtio-serial port, which is a UNIX socket here."""

    def _disk(self) -> Sequence[str]:
        path = self._directory / "port.sock"
        return [
            *("-chardev", f"socket,id=port,path={path},server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port"),
        ]

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._directory / "port.sock"))
        return connection


def measure(options: Options) -> list[Figure]:
    return asyncio.run(_measure(options, options.repeated(REPEATS)))


async def _measure(options: Options, repeats: int) -> list[Figure]:
    async with Harness.open(options) as harness:
        say("booting micro twice")
        vm = await harness.factory.start("port", guest="micro", channel="port")
        files, _ = await harness.files("micro")
        floor_of_micro = await harness.floor("micro")
        with PortFloor(files, acceleration=floor_of_micro._acceleration, directory=harness.directory) as bare:
            bare.start()
            bare.log_in()
            bare.start_loop()
            figures = await _over_ports(vm, bare, harness.directory, repeats)
        figures.append(await _many(vm, harness.directory, repeats))
        console = await harness.factory.start("console", guest="micro", channel="console")
        figures.append(await _over_console(console, harness.directory, repeats))
    return figures


async def _over_ports(vm: TestVm, bare: PortFloor, directory: Path, repeats: int) -> list[Figure]:
    source, target = directory / "source", directory / "target"
    source.write_bytes(os.urandom(SIZE))
    puts: list[float] = []
    gets: list[float] = []
    floor_puts: list[float] = []
    floor_gets: list[float] = []
    with bare.connect() as port:
        for _ in range(repeats + 1):
            puts.append(await _timed(lambda: vm.put(source, "/tmp/file")))
            gets.append(await _timed(lambda: vm.get("/tmp/file", target)))
            floor_puts.append(await asyncio.to_thread(_put_by_hand, bare, port, source))
            floor_gets.append(await asyncio.to_thread(_get_by_hand, bare, port, target))
    return [
        _figure(f"put of {SIZE // 10**6} MB over a port", puts[1:], floor_puts[1:]),
        _figure(f"get of {SIZE // 10**6} MB over a port", gets[1:], floor_gets[1:]),
    ]


def _figure(name: str, ours: list[float], floor: list[float]) -> Figure:
    # Of throughputs, and so upside down for durations.
    ratio = 1 / ratio_of_medians(ours, floor)
    return Figure(
        name=f"{name}, n={len(ours)}",
        measured=spread(ours),
        floor=spread(floor),
        ratio=f"{ratio:.2f}",
        bound=f">= {PORT_BOUND} x",
        met=ratio >= PORT_BOUND,
    )


async def _many(vm: TestVm, directory: Path, repeats: int) -> Figure:
    many, one = directory / "many", directory / "one"
    many.mkdir()
    for number in range(1000):
        (many / str(number)).write_bytes(os.urandom(4096))
    one.write_bytes(os.urandom(4_096_000))
    ours: list[float] = []
    floor: list[float] = []
    for number in range(repeats):
        ours.append(await _timed(lambda number=number: vm.put(many, f"/tmp/many{number}")))  # type: ignore[misc]
        floor.append(await _timed(lambda: vm.put(one, "/tmp/one")))
    ratio = ratio_of_medians(ours, floor)
    return Figure(
        name=f"put of 1,000 files of 4 KiB against one of 4 MB, n={repeats}",
        measured=spread(ours),
        floor=spread(floor),
        ratio=f"{ratio:.2f}",
        bound=f"<= {MANY_BOUND} x",
        met=ratio <= MANY_BOUND,
    )


async def _over_console(vm: TestVm, directory: Path, repeats: int) -> Figure:
    """Measure fetching the text of a log; the floor is `cat` over the console."""
    lines = (f"[{number * 0.0137:12.6f}] eth0: link {number * 7919 % 97} is up\n" for number in range(60_000))
    await vm.put("".join(lines).encode()[:TEXT_BYTES], "/tmp/log")
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(repeats):
        ours.append(await _timed(lambda: vm.get("/tmp/log", directory / "log")))
        floor.append(await _timed(lambda: vm.run_bytes("base64 /tmp/log")))
    ratio = 1 / ratio_of_medians(ours, floor)
    return Figure(
        name=f"get of {TEXT_BYTES // 10**6} MB of a log over the console against base64 by `run_bytes`, n={repeats}",
        measured=spread(ours),
        floor=spread(floor),
        ratio=f"{ratio:.2f}",
        bound=f">= {CONSOLE_BOUND} x",
        met=ratio >= CONSOLE_BOUND,
    )


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def _put_by_hand(bare: PortFloor, port: socket.socket, source: Path) -> float:
    began = time.perf_counter()
    with source.open("rb") as file:
        sender = threading.Thread(target=port.sendfile, args=(file,))
        sender.start()
        bare.run(b"head -c %d </dev/vport0p1 >/tmp/file" % SIZE)
        sender.join()
    return time.perf_counter() - began


def _get_by_hand(bare: PortFloor, port: socket.socket, target: Path) -> float:
    began = time.perf_counter()
    receiver = threading.Thread(target=_receive, args=(port, target))
    receiver.start()
    bare.run(b"cat /tmp/file >/dev/vport0p1")
    receiver.join()
    return time.perf_counter() - began


def _receive(port: socket.socket, target: Path) -> None:
    left = SIZE
    with target.open("wb") as file:
        while left:
            data = port.recv(min(left, 1 << 18))
            left -= len(data)
            file.write(data)
