"""The cost of an emulated CPU model in a guest that forks a lot: Alpine's ``rc-update -u`` under TCG.

It computes the order of Alpine's services in a shell script of hundreds of forks and execs. The guest is the floor's:
nothing of the project but the guest's image takes part.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from statistics import median
from typing import Final

from ..common.figure import Figure
from ..common.harness import Harness
from ..common.options import Options, say
from ..common.samples import spread
from ..floors.bare_guest import AlpineFloor, GuestFiles

__all__ = ["measure"]

REPEATS: Final = 3
OFF: Final = " mitigations=off"
CASES: Final = (("Nehalem", True), ("Nehalem", False), ("Haswell", True), ("max", True), ("max", False))
"""CPU models, and whether the kernel's mitigations are off. The first is what the project uses."""


def measure(options: Options) -> list[Figure]:
    return asyncio.run(_measure(options.repeated(REPEATS)))


async def _measure(repeats: int) -> list[Figure]:
    figures = []
    async with Harness.open(Options()) as harness:
        files, _ = await harness.files("alpine")
        base = 0.0
        for model, off in CASES:
            boot_s, took_s = _time(harness, files, model, off=off, repeats=repeats)
            base = base or median(took_s)
            figures.append(
                Figure(
                    name=f"rc-update -u, -cpu {model}, mitigations {'off' if off else 'on'}, n={repeats}",
                    measured=spread(took_s),
                    floor=f"boot {boot_s:.1f} s",
                    ratio=f"{median(took_s) / base:.2f}",
                )
            )
    return figures


def _time(harness: Harness, files: GuestFiles, model: str, *, off: bool, repeats: int) -> tuple[float, list[float]]:
    """Measure the seconds of one boot and of each command, by the host's clock."""
    line = files.command_line if off else files.command_line.replace(OFF, "")
    acceleration = ("-accel", "tcg,thread=single", "-cpu", model)
    guest = AlpineFloor(
        dataclasses.replace(files, command_line=line), acceleration=acceleration, directory=harness.directory
    )
    began = time.perf_counter()
    guest.start()
    with guest:
        guest.log_in()
        guest.start_loop()
        boot_s = time.perf_counter() - began
        say(f"cpu_model {model}, mitigations {'off' if off else 'on'}: booted in {boot_s:.1f} s")
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            guest.run(b"rc-update -u")
            took.append(time.perf_counter() - began)
            say(f"cpu_model {model}: rc-update -u took {took[-1]:.2f} s")
    return boot_s, took
