"""A guest that writes to its disks while they are copied to another server, and reads them there."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pytest_propolis.agent_api.migration_report import DiskTransfer
from pytest_propolis.errors import MigrationError
from pytest_propolis.propolis_api import InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.settings import ENGINE
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.lifecycle import Migrate, StopAndStart, lifecycle
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODULES = "modprobe -a virtio_blk nvme"
NUMBER = re.compile(r"=(\d+)=")
WRITE = (
    "n=$((n+1)); printf '%-512s' $n > /tmp/block;"
    " dd if=/tmp/block of=/dev/vda bs=512 seek=$((n%30000)) conv=fsync,notrunc 2>/tmp/dd || { cat /tmp/dd; break; }"
)
WRITER = f"n=0; while :; do {WRITE}; echo $n > /tmp/written; done"
FILES = (
    "n=0; while ! [ -e /tmp/stop ]; do n=$((n+1)); for d in /root/busy /mnt/busy; do cd $d; f=$((n%100));"
    ' dd if=/dev/urandom of=new bs=4k count=8 2>/dev/null; mv new $f; sync; grep -v "  $f$" sums > rest 2>/dev/null;'
    " md5sum $f >> rest; mv rest sums; done; done"
)

E2FSCK = shutil.which("e2fsck", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
MKE2FS = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")


@pytest_asyncio.fixture(loop_scope="module")
async def factory(propolis: Run) -> AsyncIterator[VmFactory]:
    async with propolis.vm_factory() as factory:
        yield factory


async def started(factory: VmFactory, *disks: DataDisk, **options: Any) -> TestVm:
    vm = await factory.start("vm", guest="micro", cpus=1, memory_mib=128, disks=disks, **options)
    await vm.run(MODULES)
    return vm


async def migrated(factory: VmFactory, vm: TestVm, *, copy_disks: bool = True) -> TestVm:
    target = await factory.successor(vm, f"vm-{secrets.token_hex(4)}", copy_disks=copy_disks)
    await target.migrate_from(vm)
    await target.wait_for_state(InstanceState.RUNNING)
    await vm.wait_for_state(InstanceState.DESTROYED)
    return target


async def check_transfers(vm: TestVm, *expected: DiskTransfer) -> None:
    """Check how disks were transferred, if the server reports it: only the engine does."""
    if vm.server != ENGINE:
        return
    assert vm._migrations
    came = (await vm._migrations()).migration_in
    assert came
    assert list(came.disks.values()) == list(expected)


async def test_a_writer_loses_repeats_and_reorders_nothing_on_disk_and_console(factory: VmFactory) -> None:
    vm = await started(factory, DataDisk(name="data", size_mib=16), channel="console")
    writing = asyncio.create_task(vm.run(f"n=0; while :; do {WRITE}; echo =$n=; done", timeout_s=300))
    await vm.wait_for_serial_output("=5=")
    for copy_disks in (True, False, True, True):
        vm = await migrated(factory, vm, copy_disks=copy_disks)
        await check_transfers(vm, DiskTransfer.COPIED_OVERLAY if copy_disks else DiskTransfer.SHARED)
        await vm.console.wait_for(NUMBER, timeout_s=60)
    assert not writing.done()
    await vm.console.send("\x1c")
    await asyncio.gather(writing, return_exceptions=True)
    history = await vm.get_serial_console_history(max_bytes=1 << 21)
    numbers = [int(number) for number in re.findall(NUMBER.pattern.encode(), history.content)]
    assert numbers == list(range(1, len(numbers) + 1))
    await vm.run("echo 3 > /proc/sys/vm/drop_caches")
    reading = f"dd if=/dev/vda bs=512 skip=1 count={len(numbers)} 2>/dev/null | tr -s ' ' '\\n'"
    assert [int(number) for number in (await vm.run(reading, timeout_s=120)).split()] == numbers


async def test_a_disk_in_memory_arrives_as_the_guest_left_it(factory: VmFactory) -> None:
    vm = await started(factory, DataDisk(name="memory", size_mib=1, in_memory=True))
    for word, copy_disks, way in [("one", False, DiskTransfer.SHARED), ("two", True, DiskTransfer.COPIED)]:
        await vm.run(f"echo {word} | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null")
        vm = await migrated(factory, vm, copy_disks=copy_disks)
        await check_transfers(vm, way)
        await vm.run("echo 3 > /proc/sys/vm/drop_caches")
        assert await vm.run("head -n 1 /dev/vda") == word


async def test_a_target_that_fails_after_the_copying_leaves_a_guest_that_writes_on(factory: VmFactory) -> None:
    vm = await started(
        factory, DataDisk(name="data", size_mib=16), boot="cold", fail_migration_exports=1, fail_migration_imports=0
    )
    await vm.run(f"({WRITER}) > /tmp/error 2>&1 &")
    target = await factory.successor(vm, "never", copy_disks=True)
    with pytest.raises(MigrationError, match=r"failure injector|reached phase Pause"):
        await target.migrate_from(vm)
    await vm.wait_for_state(InstanceState.RUNNING)
    written = "n=$(cat /tmp/written); m=$n; until [ ${n:-0} -gt $((m+5)) ]; do n=$(cat /tmp/written); sleep 0.1; done"
    await vm.run(written, timeout_s=60)
    vm = await migrated(factory, vm)
    await vm.run(written, timeout_s=60)
    assert await vm.run("cat /tmp/error") == ""


@pytest.mark.slow
@pytest.mark.skipif(not (E2FSCK and MKE2FS), reason="e2fsck is not installed (package e2fsprogs)")
async def test_file_systems_that_are_mounted_and_busy_arrive_whole(factory: VmFactory, tmp_path: Path) -> None:
    """The root is an overlay on the guest's image, of which only written data is copied; the other disk is raw."""
    image = tmp_path / "ext4.raw"
    assert MKE2FS
    assert E2FSCK
    subprocess.run([MKE2FS, "-q", "-t", "ext4", image, "32M"], check=True)
    disk = DataDisk(name="data", image=image)
    vm = await factory.start("alpine", guest="alpine", memory_mib=256, disks=(disk,))
    await vm.run("mount -t ext4 /dev/vdb /mnt && mkdir /root/busy /mnt/busy")
    await vm.run(f"({FILES}) > /dev/null 2>&1 &")

    async def check(vm: TestVm) -> None:
        assert await vm.run("dmesg | grep -iE 'EXT4-fs (error|warning)|I/O error'", check=False) == ""

    vm = await lifecycle(factory, vm, [Migrate(copy_disks=True), Migrate(), Migrate(copy_disks=True)], check)
    await check_transfers(vm, DiskTransfer.COPIED_OVERLAY, DiskTransfer.COPIED_OVERLAY)
    await vm.run("touch /tmp/stop; wait; cd /; sync; echo 3 > /proc/sys/vm/drop_caches", timeout_s=120)
    for place in ("/root/busy", "/mnt/busy"):
        assert await vm.run(f"cd {place} && md5sum -c -s sums && wc -l < sums", timeout_s=120) != "0"
    await vm.run("cd /; umount /mnt; sync")
    path = vm.spec.components["data-backend"].component.path  # type: ignore[union-attr]
    vm = await lifecycle(factory, vm, [StopAndStart()], check)
    assert await vm.run("cd /root/busy && md5sum -c -s sums && echo whole") == "whole"
    await vm.stop()
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, tmp_path / "copy.raw"], check=True)
    subprocess.run([E2FSCK, "-f", "-n", tmp_path / "copy.raw"], check=True)
