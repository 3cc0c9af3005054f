"""Disks that a migration copied stay with a VM that is kept."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from pathlib import Path

from inner_run import InnerRun
from propolis_command import propolis

WAIT_S = 60

TEST = """
from pytest_propolis import DataDisk

async def test_fails(vm_factory):
    disks = (DataDisk(name="data", size_mib=1),)
    alice = await vm_factory.start("alice", guest="micro", memory_mib=128, disks=disks)
    bob = await vm_factory.successor(alice, "bob", copy_disks=True)
    await bob.migrate_from(alice)
    print("bob has", bob.spec.components["data-backend"].component.path)
    assert False
"""


def test_a_copied_disk_outlives_even_the_agent_until_it_is_collected(inner: InnerRun) -> None:
    inner.write(test_it=TEST)
    result = inner.run("--propolis-keep=failed", "-s")
    result.assert_outcomes(failed=1)
    try:
        (disk,) = re.findall(r"bob has (\S+)", result.stdout.str())
        assert disk in re.findall(r"^  disk (\S+)$", result.stdout.str(), re.MULTILINE)
        (agent,) = [
            int(process.name)
            for process in inner.processes()
            if b"pytest_propolis.agent" in (process / "cmdline").read_bytes()
        ]
        os.kill(agent, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_S
        while list(inner.processes()):
            assert time.monotonic() < deadline
            select.select([], [], [], 0.05)
        propolis("gc")
        assert Path(disk).is_file()
    finally:
        propolis("gc", "--kept")
    assert not Path(disk).exists()
    assert inner.leavings() == []
