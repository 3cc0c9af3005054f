"""The pause of an idle guest that migrates on one host, against two QEMUs driven by hand.

The pause is the time from the source QEMU's event STOP to the target QEMU's event RESUME, on both sides.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from pytest_propolis.agent_api.migration_report import MigrationReport
from pytest_propolis.engine.qemu.accelerator.acceleration import acceleration_arguments
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.vm.vm import TestVm

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import milliseconds, percentile
from ..floors.bare_guest import CPUS, MEMORY_MIB, GuestFiles

__all__ = ["MigratingQemu", "measure", "read_until"]

REPEATS = 15
PAUSE_BOUND_S = 0.060
OVER_FLOOR_BOUND_S = 0.020
TIMEOUT_S = 120.0


def measure(options: Options) -> list[Figure]:
    ours, floor = asyncio.run(_measure(options.repeated(REPEATS), options))
    measured, by_hand = percentile(ours, 0.5), percentile(floor, 0.5)
    return [
        Figure(
            name=f"migration of {MEMORY_MIB} MiB, pause, p50, n={len(ours)}",
            measured=milliseconds(measured),
            floor=milliseconds(by_hand),
            ratio=f"{measured / by_hand:.2f}",
            bound=f"<= {PAUSE_BOUND_S * 1000:.0f} ms, <= floor + {OVER_FLOOR_BOUND_S * 1000:.0f} ms",
            met=measured <= PAUSE_BOUND_S and measured <= by_hand + OVER_FLOOR_BOUND_S,
        ),
        Figure(name="the same, quickest", measured=milliseconds(min(ours)), floor=milliseconds(min(floor))),
        Figure(name="the same, slowest", measured=milliseconds(max(ours)), floor=milliseconds(max(floor))),
    ]


async def _measure(repeats: int, options: Options) -> tuple[list[float], list[float]]:
    """Measure pauses of ours and by hand, in turns, without the first pair, which warms up."""
    ours, floor = [], []
    async with Harness.open(options, boot="cold") as harness:
        say("migration: booting the guests")
        files, accelerator = await harness.files("micro")
        vm = await harness.factory.start("vm", guest="micro")
        with _ByHand(files, acceleration_arguments(accelerator), harness.directory) as by_hand:
            await asyncio.to_thread(by_hand.boot)
            for _ in range(repeats + 1):
                vm, pause_s = await _hop(harness, vm)
                ours.append(pause_s)
                floor.append(await asyncio.to_thread(by_hand.hop))
                say(
                    f"migration: {pause_s * 1000:.1f} ms, by hand {floor[-1] * 1000:.1f}, load {os.getloadavg()[0]:.1f}"
                )
    return ours[1:], floor[1:]


async def _hop(harness: Harness, vm: TestVm) -> tuple[TestVm, float]:
    target = await harness.factory.successor(vm)
    await target.migrate_from(vm)
    await target.wait_for_state(InstanceState.RUNNING)
    await target.run("true")
    stopped_s = (await _report(harness, vm)).stopped_s
    resumed_s = (await _report(harness, target)).resumed_s
    await vm.aclose()
    return target, resumed_s - stopped_s


async def _report(harness: Harness, vm: TestVm) -> MigrationReport:
    return await harness.factory.agent.migrations(urlsplit(vm.client.endpoint.base_url).path)


class MigratingQemu:
    """One QEMU.

    :param memory: the memory that it maps; None for one of its own, which is sent.
    """

    def __init__(self, files: GuestFiles, acceleration: tuple[str, ...], memory: int | None, *, incoming: bool) -> None:
        self.serial, serial = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        fds = (serial.fileno(), monitor.fileno(), *(() if memory is None else (memory,)))
        backend = f"memory-backend-ram,id=ram,size={MEMORY_MIB}M"
        if memory is not None:
            backend = f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path=/proc/self/fd/{memory},share=on"
        arguments = [
            *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,memory-backend=ram"),
            *("-object", backend, *acceleration, "-smp", str(CPUS), "-m", f"{MEMORY_MIB}M", "-S"),
            *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", files.command_line),
            *("-chardev", f"socket,id=com1,fd={fds[0]}", "-device", "isa-serial,chardev=com1"),
            *("-chardev", f"socket,id=mon,fd={fds[1]}", "-mon", "chardev=mon,mode=control"),
            *(("-incoming", "defer") if incoming else ()),
        ]
        command = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *arguments]
        with serial, monitor:
            self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
        self._lines = self._monitor.makefile("r")
        self._lines.readline()
        self._at_s: dict[str, float] = {}
        self.do("qmp_capabilities")
        capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")[memory is None :]]
        self.do("migrate-set-capabilities", capabilities=capabilities)

    def do(self, command: str, **arguments: Any) -> None:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        self._until(lambda message: "return" in message or "error" in message)

    def until_migrated(self) -> None:
        self._until(lambda message: message.get("data", {}).get("status") == "completed")

    def time_of(self, event: str) -> float:
        """Return the time of the latest event of a kind, in seconds since the epoch."""
        if event not in self._at_s:
            self._until(lambda message: message.get("event") == event)
        return self._at_s[event]

    def _until(self, good: Callable[[dict[str, Any]], bool]) -> None:
        while True:
            message = json.loads(self._lines.readline())
            if "event" in message:
                timestamp = message["timestamp"]
                self._at_s[message["event"]] = timestamp["seconds"] + timestamp["microseconds"] / 1e6
            if good(message):
                break
        if "error" in message:
            raise RuntimeError(message["error"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._monitor.close()
        self.serial.close()


class _ByHand:
    """A guest that goes from QEMU to QEMU: stop, migrate, cont."""

    def __init__(self, files: GuestFiles, acceleration: tuple[str, ...], directory: Path) -> None:
        self._made = (files, acceleration, os.memfd_create("floor"))
        self._uri = f"unix:{directory / 'floor.sock'}"
        self._qemu = MigratingQemu(*self._made, incoming=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._qemu.close()
        os.close(self._made[2])

    def boot(self) -> None:
        self._qemu.do("cont")
        read_until(self._qemu.serial, b"~ # ")

    def hop(self) -> float:
        """Migrate, and check that the guest still answers; return the pause in seconds."""
        source, target = self._qemu, MigratingQemu(*self._made, incoming=True)
        target.do("migrate-incoming", uri=self._uri)
        source.do("stop")
        source.do("migrate", uri=self._uri)
        source.until_migrated()
        target.until_migrated()
        target.do("cont")
        pause_s = target.time_of("RESUME") - source.time_of("STOP")
        source.close()
        self._qemu = target
        target.serial.sendall(b"echo ali''ve\n")
        read_until(target.serial, b"alive")
        return pause_s


def read_until(line: socket.socket, mark: bytes) -> None:
    """Read a guest's output up to a marker."""
    line.settimeout(TIMEOUT_S)
    seen = b""
    while mark not in seen:
        data = line.recv(1 << 16)
        if not data:
            raise RuntimeError(f"QEMU ended before it wrote {mark!r}: {seen[-500:]!r}")
        seen += data
