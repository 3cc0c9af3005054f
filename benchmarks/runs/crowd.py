"""Twenty workers of pytest at once, each with a VM, on a host that cannot give all of them the memory they ask for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from ..common.figure import Figure
from ..common.options import Options, say

__all__ = ["measure"]

WORKERS: Final = 20
RUN_TIMEOUT_S: Final = 600.0

# One of them has most of the host's memory promised to it, though not in use, until another one waits for some.
CROWD: Final = """
import asyncio, os, pathlib
import pytest

PLACE = pathlib.Path(os.environ["MEETING_PLACE"])
TOTAL_MIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20

async def until_there_are(pattern, count):
    async with asyncio.timeout(400):
        while len(list(PLACE.glob(pattern))) < count:
            await asyncio.sleep(0.2)

@pytest.mark.parametrize("number", range({workers}))
async def test_crowd(test_vm, vm_factory, number):
    assert test_vm.boot_kind == "warm"
    (PLACE / f"here-{{number}}").touch()
    await until_there_are("here-*", {workers})
    if number == 0:
        await vm_factory.create("most", boot="cold", memory_mib=TOTAL_MIB * 2 // 3)
        (PLACE / "taken").touch()
        await until_there_are("waits-*", 1)
    else:
        say = vm_factory._progress
        vm_factory._progress = lambda line: (say(line), (PLACE / f"waits-{{number}}").touch())
        await until_there_are("taken", 1)
        await vm_factory.create("more", boot="cold", memory_mib=TOTAL_MIB // 4)
    assert await test_vm.run(f"echo {{number}}") == str(number)
"""


def measure(options: Options) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        killed, began = _killed(), time.monotonic()
        passed, told = _run(Path(name), options)
        took_s = time.monotonic() - began
        killed = _killed() - killed
    say(f"{took_s:.1f} s, load {os.getloadavg()[0]:.1f}")
    return [
        Figure(
            name=f"{WORKERS} workers, each with a VM (micro, 256 MiB) at the same time: all pass, in",
            measured=f"{took_s:.1f} s",
            met=passed,
        ),
        Figure(name="tests that waited for memory said so", measured=f"{told} lines", bound=">= 1", met=told >= 1),
        Figure(name="processes that the kernel killed for want of memory", measured=str(killed), met=killed == 0),
    ]


def _run(directory: Path, options: Options) -> tuple[bool, int]:
    (directory / "test_crowd.py").write_text(CROWD.format(workers=WORKERS))
    ours = ("--propolis-guest=micro", "--propolis-cpus=1", "--propolis-memory-mib=256")
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(WORKERS), "-p", "no:cacheprovider", *ours]
    finished = subprocess.run(
        [*command, f"--propolis-accelerator={options.accelerator}", "test_crowd.py"],
        cwd=directory,
        env={**os.environ, "MEETING_PLACE": str(directory)},
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    if finished.returncode:
        say(finished.stdout)
    return finished.returncode == 0, finished.stderr.count("waits for memory")


def _killed() -> int:
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
