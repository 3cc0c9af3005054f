"""A file system of guests' disks that is full: refused before, and named when a guest meets it."""

from __future__ import annotations

import shutil

import pytest
from inner_run import InnerRun
from mounts import as_root, mounted, tmpfs
from propolis_command import propolis

pytestmark = as_root

FILLS_ITS_DISK = """
import pytest
from pytest_propolis import ConsoleClosed, DataDisk, InstanceState

@pytest.mark.parametrize("boot", ["warm", "cold"])
async def test_it(vm_factory, boot):
    vm = await vm_factory.start("vm", boot=boot, disks=(DataDisk(name="data", size_mib=128),))
    await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done")
    with pytest.raises(ConsoleClosed, match=f"'data-backend': no space left in PLACE"):
        await vm.run("dd if=/dev/urandom of=/dev/vda bs=1M; sync", timeout_s=200)
    await vm.wait_for_state(InstanceState.FAILED)
"""

FILLS_ITS_VOLUME = """
import pytest
from pytest_propolis import ConsoleClosed, InstanceState

async def test_it(crucible_disk_factory, vm_factory):
    disk = await crucible_disk_factory("data", size_mib=64, stall_timeout_s=2)
    vm = await vm_factory.start("vm", memory_mib=128, disks=(disk,))
    await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done")
    with pytest.raises(ConsoleClosed, match=f"'data-backend': no space left in PLACE"):
        await vm.run("dd if=/dev/urandom of=/dev/vda bs=1M conv=fsync", timeout_s=200)
    await vm.wait_for_state(InstanceState.FAILED)
    assert "'data-backend': no space left in PLACE" in (await vm.extended_info()).failure
"""

MAKES_A_DISK = """
from pytest_propolis import DataDisk

async def test_it(vm_factory):
    await vm_factory.create("vm", disks=(DataDisk(name="data", size_mib=1),))
"""


def test_a_guest_that_meets_a_full_file_system_ends_with_its_name(inner: InnerRun) -> None:
    with mounted(inner.runtime / "disks", *tmpfs("size=48m")) as disks:
        inner.write(test_it=FILLS_ITS_DISK.replace("PLACE", str(disks)))
        result = inner.run(f"--propolis-disk-dir={disks}", "--propolis-standby=0")
        result.assert_outcomes(passed=2)
        assert result.ret == pytest.ExitCode.OK
        assert list(disks.iterdir()) == []


def test_a_guest_whose_replicas_meet_a_full_file_system_ends_with_its_name(inner: InnerRun) -> None:
    with mounted(inner.runtime / "disks", *tmpfs("size=120m")) as disks:
        inner.write(test_it=FILLS_ITS_VOLUME.replace("PLACE", str(disks)))
        inner.run(f"--propolis-disk-dir={disks}", "--propolis-standby=0").assert_outcomes(passed=1)
        assert list(disks.iterdir()) == []


def test_a_disk_is_refused_where_little_is_free(inner: InnerRun) -> None:
    with mounted(inner.runtime / "disks", *tmpfs("size=16m")) as disks:
        inner.write(test_it=MAKES_A_DISK)
        inner.fails_with(
            f"ResourceExhausted: no space left for a disk in {disks}: * MiB are free*",
            "hint: *--propolis-disk-dir*",
            arguments=(f"--propolis-disk-dir={disks}",),
        )
        assert list(disks.iterdir()) == []


def test_a_directory_of_disks_that_cannot_be_made_is_named(inner: InnerRun) -> None:
    inner.write(test_it=MAKES_A_DISK)
    (inner.pytester.path / "file").touch()
    inner.fails_with(
        f"HostError: disks cannot be made in {inner.pytester.path}/file/disks: Not a directory",
        arguments=(f"--propolis-disk-dir={inner.pytester.path}/file/disks",),
    )


def test_the_run_directory_has_no_disks(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = inner.pytester.path / "disks"
    monkeypatch.setenv("PROPOLIS_DISK_DIR", str(disks))
    inner.write(
        test_it=f"""
from pathlib import Path
from pytest_propolis import DataDisk

async def test_it(vm_factory, propolis):
    await vm_factory.start("vm", disks=(DataDisk(name="data", size_mib=1),))
    assert list(propolis.host.directory.rglob("*.qcow2")) == []
    assert len(list(Path({str(disks)!r}).rglob("*.qcow2"))) == 1
"""
    )
    inner.run("--propolis-standby=0").assert_outcomes(passed=1)
    assert list(disks.iterdir()) == []


KILLS_ITS_AGENT = """
import os, signal
from pytest_propolis import DataDisk

async def test_it(vm_factory, propolis):
    await vm_factory.create("vm", disks=(DataDisk(name="data", size_mib=1),))
    agent = await (await propolis.host.client()).info()
    os.kill(agent.pid, signal.SIGKILL)
"""


@pytest.mark.parametrize("lost", [False, True], ids=["ledger there", "ledger lost"])
def test_gc_removes_the_disks_of_a_killed_agent(inner: InnerRun, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    disks = inner.pytester.path / "disks"
    monkeypatch.setenv("PROPOLIS_DISK_DIR", str(disks))
    inner.write(test_it=KILLS_ITS_AGENT)
    result = inner.run()
    (left,) = disks.iterdir()
    result.stdout.fnmatch_lines([f"entry of a directory: {left}, of agent"])
    if lost:  # as when the user's session ends
        shutil.rmtree(inner.runtime / "propolis")
    assert str(left) in propolis("gc")
    assert list(disks.iterdir()) == []
