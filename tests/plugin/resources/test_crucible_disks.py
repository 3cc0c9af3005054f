"""Replicated disks in a run of pytest: their section in a failed test's report, and their retention."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from pathlib import Path

import pytest
from crucible_downstairs import write_crucible_downstairs
from inner_run import InnerRun
from propolis_command import propolis

WAIT_S = 60

FAILS = """
async def test_fails(crucible_disk_factory, vm_factory):
    disk = await crucible_disk_factory("data", size_mib=64)
    await vm_factory.start("alice", memory_mib=128, disks=(disk,))
    await disk.kill(1)
    for downstairs in (await disk.facts()).downstairs:
        print("file", downstairs.path)
    assert False
"""

PASSES = FAILS.replace("assert False", "pass").replace("test_fails", "test_passes")

SHARED = """
import pytest_asyncio

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def disk(propolis):
    async with propolis.crucible_disk_factory() as factory:
        yield await factory("shared", size_mib=64)

async def use(disk, vm_factory):
    vm = await vm_factory.start(memory_mib=128, disks=(disk,))
    return await vm.run(
        "modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done;"
        " tr -d '\\\\0' </dev/vda; printf more | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null"
    )

import pytest
pytestmark = pytest.mark.asyncio(loop_scope="module")

async def test_first(disk, vm_factory):
    assert await use(disk, vm_factory) == ""

async def test_second(disk, vm_factory):
    assert await use(disk, vm_factory) == "more"
"""


def test_a_failed_test_shows_its_disks_and_each_downstairs(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    result = inner.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "* propolis crucible disk 'data' *",
            "64 MiB, generation 1, volume *",
            "downstairs 0: 127.0.0.1:* serving, generation 1, epoch *, *",
            "downstairs 1: 127.0.0.1:* dead, generation 1, epoch *, *",
            "downstairs 2: 127.0.0.1:* serving, generation 1, epoch *, *",
        ]
    )


def test_disks_are_kept_with_their_vm_and_are_listed(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    result = inner.run("--propolis-keep=failed", "-s")
    result.assert_outcomes(failed=1)
    files = [Path(path) for path in re.findall(r"file (/\S+)$", result.stdout.str(), re.MULTILINE)]
    try:
        listed = propolis("ps")
        (line,) = [line for line in listed.splitlines() if " volume " in line]
        assert "'data', 64 MiB, of " in line
        assert re.search(r"kept until .* serving, 127\S+ dead, 127\S+ serving", line)
        assert len(files) == 3
        assert all(path.is_file() for path in files)
    finally:
        propolis("gc", "--kept")
    assert not any(path.exists() for path in files)
    assert inner.leavings() == []


def test_disks_of_a_test_that_passes_are_not_kept(inner: InnerRun) -> None:
    inner.write(test_it=PASSES)
    inner.run("--propolis-keep=failed").assert_outcomes(passed=1)
    assert inner.leavings() == []


def test_a_disk_of_a_wider_scope_outlives_the_vms_that_use_it(inner: InnerRun) -> None:
    inner.write(test_it=SHARED)
    inner.run().assert_outcomes(passed=2)


def test_nothing_is_left_of_a_disk_whose_agent_is_killed(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    inner.run("--propolis-keep=failed").assert_outcomes(failed=1)
    (agent,) = [
        int(process.name)
        for process in inner.processes()
        if b"pytest_propolis.agent" in (process / "cmdline").read_bytes()
    ]
    os.kill(agent, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while list(inner.processes()):  # the downstairs die with their agent
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)
    propolis("gc", "--kept")
    assert inner.leavings() == []


USES_ITS_DISK = """
async def test_writes(crucible_disk_factory, vm_factory):
    disk = await crucible_disk_factory("data", size_mib=64)
    await vm_factory.start("alice", memory_mib=128, disks=(disk,))
    assert [item.state for item in (await disk.facts()).downstairs] == ["running"] * 3
"""


def test_downstairs_are_a_program_that_a_catalog_names(inner: InnerRun, tmp_path: Path) -> None:
    program = write_crucible_downstairs(tmp_path)
    program.chmod(0o600)  # nothing in a store is executable
    catalog = tmp_path / "artifacts.toml"
    source = f'{{ local_path = {{ path = "{tmp_path}" }} }}'
    catalog.write_text(
        f'[artifacts.mine]\nfilename = "{program.name}"\nkind = "crucible_downstairs"\nsource = {source}\n'
    )
    inner.write(test_it=USES_ITS_DISK)
    options = (f"--propolis-artifacts={catalog}", "--propolis-crucible-downstairs=mine")
    inner.run(*options).assert_outcomes(passed=1)
    assert inner.leavings() == []


def test_a_downstairs_program_that_is_not_there_is_an_error(inner: InnerRun) -> None:
    inner.write(test_it=USES_ITS_DISK)
    result = inner.run("--propolis-crucible-downstairs=/nowhere/crucible-downstairs")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*/nowhere/crucible-downstairs is not a program that can be run*"])
