"""The time from the request for a fork to the result of its first command, against QEMU and sockets by hand."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from pytest_propolis.storage.debian import DebianBuild
from pytest_propolis.storage.user_directories import default_artifact_dir
from pytest_propolis.vm.config import DataDisk, Nic

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import ratio_of_medians, spread
from ..floors.bare_fork import BareFork, place_of_template
from ..floors.bare_guest import MEMORY_MIB

__all__ = ["first_command_s", "measure"]

BOUND = 1.25
ROUNDS = 15
FORKS = 10
PSS_BOUND_MIB = 60
MUCH_MIB = 2048
COLD_BOUND = 100
STANDBY_TIMEOUT_S = 60.0
PLUGGED: Final[dict[str, dict[str, Any]]] = {
    "virtio-disk": {"disks": (DataDisk(name="data", contents=bytes(1 << 20)),)},
    "nvme-disk": {"disks": (DataDisk(name="data", contents=bytes(1 << 20), interface="nvme"),)},
    "card": {"nics": (Nic(),)},
}

DEBIAN = DebianBuild()
_BUILT = ["debian"] if (default_artifact_dir() / "derived" / DEBIAN.key / DEBIAN.disk).exists() else []


def measure(options: Options) -> list[Figure]:
    guests = ("micro", "alpine") if options.alpine else ("micro",)
    figures = []
    for guest in guests:
        for standby in (0, 1):
            figures += asyncio.run(_measure(guest, standby, options))
        figures += asyncio.run(_measure_memory(guest, options))
    if options.alpine:
        for guest in ("alpine", *_BUILT):
            figures += asyncio.run(_measure_against_boot(guest, options))
    return figures


async def _measure_against_boot(guest: str, options: Options) -> list[Figure]:
    """Measure how much faster a standby fork has its first result than a guest that boots."""
    async with Harness.open(options, standby=1) as harness:
        began = time.perf_counter()
        vm = await harness.factory.start("cold", guest=guest, boot="cold")
        await vm.run("true")
        cold_s = time.perf_counter() - began
        await vm.aclose()
        await harness.factory.start("first", guest=guest)
        forks_s = [await first_command_s(harness, guest, f"vm{number}", standby=True) for number in range(FORKS)]
        plugged_s = {
            what: [
                await first_command_s(harness, guest, f"{what}{number}", standby=True, **changes)
                for number in range(FORKS)
            ]
            for what, changes in PLUGGED.items()
        }
    say(f"{guest}: cold {cold_s:.2f}, forks {spread(forks_s)}, load {os.getloadavg()[0]:.1f}")
    ratio = cold_s / median(forks_s)
    return [
        Figure(
            name=f"cold boot of {guest} ({cold_s:.2f} s, n=1) / fork that stood by, n={FORKS}",
            measured=spread(forks_s),
            ratio=f"{ratio:.0f}",
            bound=f">= {COLD_BOUND} x",
            met=ratio >= COLD_BOUND,
        ),
        *(
            Figure(
                name=f"cold boot / the same with what no template has: {what}",
                measured=spread(took_s),
                ratio=f"{cold_s / median(took_s):.0f}",
            )
            for what, took_s in plugged_s.items()
        ),
    ]


async def _measure_memory(guest: str, options: Options) -> list[Figure]:
    added_mib = {memory_mib: await _added_mib(guest, memory_mib, options) for memory_mib in (MEMORY_MIB, MUCH_MIB)}
    return [
        Figure(
            name=f"memory (PSS) that fork {FORKS} of {guest} adds",
            measured=f"{added_mib[MEMORY_MIB]:.0f} MiB",
            bound=f"<= {PSS_BOUND_MIB} MiB",
            met=added_mib[MEMORY_MIB] <= PSS_BOUND_MIB,
        ),
        Figure(
            name=f"the same where its guest has {MUCH_MIB} instead of {MEMORY_MIB} MiB",
            measured=f"{added_mib[MUCH_MIB]:.0f} MiB",
            ratio=f"{added_mib[MUCH_MIB] / added_mib[MEMORY_MIB]:.2f}",
            bound=f"<= {BOUND:.2f} x",
            met=added_mib[MUCH_MIB] <= BOUND * added_mib[MEMORY_MIB],
        ),
    ]


async def _added_mib(guest: str, memory_mib: int, options: Options) -> float:
    """Measure what one more fork adds to the proportional set sizes of all, after it has run a command."""
    async with Harness.open(options) as harness:
        total_mib = [0.0]
        for number in range(FORKS):
            vm = await harness.factory.start(f"vm{number}", guest=guest, memory_mib=memory_mib)
            await vm.run("true")
            pids = [listed.pid for listed in await harness.factory.agent.list_vms() if listed.pid]
            total_mib.append(sum(map(_pss_mib, pids)))
    return total_mib[-1] - total_mib[-2]


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


async def _measure(guest: str, standby: int, options: Options) -> list[Figure]:
    ours: list[float] = []
    floor: list[float] = []
    async with Harness.open(options, standby=standby) as harness:
        place = await place_of_template(harness, guest)
        for number in range(options.repeated(ROUNDS) + 1):
            ours.append(await first_command_s(harness, guest, f"vm{number}", standby=bool(standby)))
            floor.append(_by_hand(place, harness.directory, standby=bool(standby)))
            say(f"fork {guest} {standby=}: {ours[-1]:.3f}, by hand {floor[-1]:.3f}, load {os.getloadavg()[0]:.1f}")
    ours, floor = ours[1:], floor[1:]
    ratio = ratio_of_medians(ours, floor)
    how = "that stood by" if standby else "without standby"
    return [
        Figure(
            name=f"fork of {guest} {how} to the first result, n={len(ours)}",
            measured=spread(ours),
            floor=spread(floor),
            ratio=f"{ratio:.3f}",
            bound=f"<= {BOUND:.2f} x",
            met=ratio <= BOUND,
        ),
        Figure(name="the same, pair by pair", ratio=f"{median(a / b for a, b in zip(ours, floor, strict=True)):.3f}"),
    ]


async def first_command_s(harness: Harness, guest: str, name: str, *, standby: bool, **changes: Any) -> float:
    """How long it takes from the wish for a fork to the result of its first command."""
    if standby:
        await _until_one_stands_by(harness)
    began = time.perf_counter()
    vm = await harness.factory.start(name, guest=guest, **changes)
    await vm.run("true")
    took_s = time.perf_counter() - began
    assert vm.boot_kind == "warm"
    assert ("exec" not in vm.phases.took_s) == standby
    await vm.aclose()
    return took_s


async def _until_one_stands_by(harness: Harness) -> None:
    async with asyncio.timeout(STANDBY_TIMEOUT_S):
        while not (await harness.factory.agent.info()).standing_by:
            await asyncio.sleep(0.02)


def _by_hand(place: Path, directory: Path, *, standby: bool) -> float:
    with BareFork(place, directory) as fork:
        began = time.perf_counter()
        fork.restore()
        if standby:
            fork.run_on()
            fork.assign_identity("warm-up", again=True)
            fork.pause()
            began = time.perf_counter()
        fork.run_on()
        fork.assign_identity("bare")
        fork.run("true")
        return time.perf_counter() - began
