"""Signals that hit a run with a replicated volume, its downstairs among them: nothing of the run is left.

The downstairs are this project's, and programs with the command line of ``crucible-downstairs``.
HAZARDS=all tests every phase.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from crucible_downstairs import write_crucible_downstairs
from live_run import live_run

PHASES = ("writing", "repairing", "tearing down") if os.environ.get("HAZARDS") == "all" else ("repairing",)
ENDED_TIMEOUT_S = 120

TEST = """
import asyncio, os
from conftest import reached

async def test_victim(crucible_disk_factory, vm_factory, slow_to_leave):
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("victim", guest="micro", memory_mib=128, disks=(disk,))
    slow_to_leave.append(vm)
    await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done")
    await vm.run("(while :; do dd if=/dev/urandom of=/dev/vda bs=1M count=32 conv=fsync 2>/dev/null; done) & :")
    phase = os.environ["HAZARD_PHASE"]
    if phase == "writing":
        reached(phase)
    if phase == "repairing":
        repair = asyncio.create_task(disk.replace_downstairs(0))
        while len((await disk.facts()).downstairs) < 4:
            assert not repair.done()
        reached(phase)
    if phase != "tearing down":
        await vm.wait_for_serial_output("this never comes", timeout_s=600)
"""


@pytest.mark.parametrize("kind", ["downstairs", pytest.param("downstairs program", marks=pytest.mark.slow)])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("downstairs", signal.SIGKILL),
        ("downstairs", signal.SIGTERM),
        ("downstairs", signal.SIGSTOP),
        ("qemu", signal.SIGKILL),
        ("agent", signal.SIGKILL),
        ("agent", signal.SIGTERM),
        ("controller", signal.SIGKILL),
        ("group", signal.SIGINT),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_nothing_is_left(phase: str, target: str, number: signal.Signals, kind: str, tmp_path: Path) -> None:
    program = {"PROPOLIS_CRUCIBLE_DOWNSTAIRS": str(write_crucible_downstairs(tmp_path))}
    with live_run(phase, test=TEST, environment=program if kind == "downstairs program" else {}) as run:
        run.wait_for_number(kind, 3)
        run.hit(kind if target == "downstairs" else target, number)
        if target == "downstairs":  # the guest goes on, and so does its test
            run.hit("group", signal.SIGINT)
        run.require_nothing_left(target, number, timeout_s=ENDED_TIMEOUT_S)
