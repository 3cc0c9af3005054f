"""Failures of replicated volumes that were reported in the field, with guests that write and verify."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from volume_checks import (
    ACTIVE,
    DRIVER,
    MICRO,
    WRITE,
    all_active,
    begin_to_write,
    end_of_writing,
    replicas,
    require_equal,
    wait_for_status,
    writes_more,
)

from pytest_propolis import ApiError, CrucibleDisk, CrucibleDiskFactory, InstanceState, TestVm, VmFactory
from pytest_propolis.propolis_api import DownstairsLiveRepair, ReplaceResult, UpstairsInfo

MIB = 1 << 20
SLOW_MS = 20.0


def is_not_active(index: int, status: UpstairsInfo) -> bool:
    return status.targets[index].state != ACTIVE


@pytest_asyncio.fixture
async def disk(crucible_disk_factory: CrucibleDiskFactory) -> CrucibleDisk:
    return await crucible_disk_factory("data", size_mib=64)


@pytest_asyncio.fixture
async def writer(disk: CrucibleDisk, vm_factory: VmFactory) -> TestVm:
    """Return a VM whose guest writes to a half-full disk, so that a repair takes time."""
    vm = await vm_factory.start("writer", disks=(disk,), **MICRO)
    await vm.run("modprobe virtio_blk; dd if=/dev/urandom of=/dev/vda bs=1M seek=32 count=32 conv=fsync 2>/dev/null")
    await begin_to_write(vm)
    return vm


def is_repairing(status: UpstairsInfo) -> bool:
    return status.live_repair_in_progress and status.targets[0].state == DownstairsLiveRepair()


async def begin_slow_repair(disk: CrucibleDisk) -> None:
    """Replace replica 0 by one that takes its time."""
    await disk.slow(1, delay_ms=SLOW_MS)
    await disk.slow(2, delay_ms=SLOW_MS)
    await disk.replace_downstairs(0)
    await wait_for_status(disk, is_repairing)


async def hurry(disk: CrucibleDisk) -> None:
    for index in (1, 2):
        await disk.slow(index, delay_ms=0)


@pytest.mark.slow
async def test_a_downstairs_that_hangs_up_in_the_middle_of_its_repair_is_repaired_in_the_end(
    writer: TestVm, disk: CrucibleDisk
) -> None:
    await begin_slow_repair(disk)
    await disk.disconnect(0)
    await hurry(disk)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


@pytest.mark.slow
async def test_a_downstairs_that_dies_in_the_middle_of_its_repair_is_repaired_when_it_is_back(
    writer: TestVm, disk: CrucibleDisk
) -> None:
    await begin_slow_repair(disk)
    await disk.kill(0)
    await wait_for_status(disk, lambda status: not status.live_repair_in_progress)
    await hurry(disk)
    await writes_more(writer)
    await disk.restart(0)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def test_another_downstairs_that_dies_while_one_is_repaired_loses_nothing(
    writer: TestVm, disk: CrucibleDisk
) -> None:
    await begin_slow_repair(disk)
    await disk.kill(2)
    await hurry_one(disk)
    await disk.restart(2)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def hurry_one(disk: CrucibleDisk) -> None:
    await disk.slow(1, delay_ms=0)


@pytest.mark.slow
async def test_another_downstairs_that_hangs_while_one_is_repaired_loses_nothing(
    writer: TestVm, disk: CrucibleDisk
) -> None:
    await begin_slow_repair(disk)
    await disk.pause(2)
    await hurry_one(disk)
    await wait_for_status(disk, lambda status: status.targets[2].state != ACTIVE)
    await disk.resume(2)
    await disk.slow(2, delay_ms=0)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


@pytest.mark.slow
async def test_a_guest_reboots_after_a_repair_and_finds_what_it_wrote(writer: TestVm, disk: CrucibleDisk) -> None:
    await disk.replace_downstairs(0)
    await wait_for_status(disk, all_active)
    written = await end_of_writing(writer)
    await writer.graceful_reboot()
    assert (await writer.run(f"{DRIVER}; sha256sum </dev/vda")).split()[0] == written
    await disk.kill(1)
    await writer.run("dd if=/dev/urandom of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null")


async def test_a_replacement_while_another_replica_is_offline_is_refused_and_can_be_forced(
    writer: TestVm, disk: CrucibleDisk
) -> None:
    await disk.kill(1)
    await wait_for_status(disk, lambda status: status.targets[1].state != ACTIVE)
    with pytest.raises(ApiError, match="is offline"):
        await disk.replace_downstairs(2)
    assert await disk.replace_downstairs(1, offline=True) is ReplaceResult.STARTED
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def test_a_volume_that_stays_without_replicas_fails_its_vm_and_says_where_the_data_is(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory("data", size_mib=64, stall_timeout_s=2)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    await begin_to_write(vm)
    await disk.kill(0)
    await wait_for_status(disk, lambda status: status.targets[0].state != ACTIVE)
    await writes_more(vm)
    await disk.kill(1)
    await vm.wait_for_state(InstanceState.FAILED)
    failure = (await vm.extended_info()).failure or ""
    assert "fewer than 2 usable replicas for 2 s" in failure
    # The first to go lacks what was written since.
    assert failure.endswith(f"all writes are in {disk.targets[1]} and {disk.targets[2]}")


async def test_two_replicas_that_differ_without_a_third_to_tell_fail_the_vm_and_are_named(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory("data", size_mib=64, stall_timeout_s=2)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    await vm.run(WRITE)
    await disk.kill(0)
    await wait_for_status(disk, lambda status: status.targets[0].state != ACTIVE)
    await disk.corrupt(1, 8 * 512)
    reading = asyncio.create_task(vm.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda", check=False))
    await vm.wait_for_state(InstanceState.FAILED)
    await asyncio.gather(reading, return_exceptions=True)
    assert f"{disk.targets[1]} and {disk.targets[2]} differ at sector" in ((await vm.extended_info()).failure or "")


async def test_a_volume_over_an_image_starts_with_its_contents_and_leaves_it_alone(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, tmp_path: Path
) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"original".ljust(MIB, b"\1"))
    disk = await crucible_disk_factory("data", size_mib=64, image=image)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done")
    assert await vm.run("head -c 8 /dev/vda") == "original"
    await vm.run("echo changed | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null")
    with pytest.raises(ApiError, match="cannot be compared"):
        await disk.replace_downstairs(0)
    await disk.replace_downstairs(0, offline=True)
    await wait_for_status(disk, all_active)
    for index in (1, 2):
        await disk.kill(index)
        await wait_for_status(disk, partial(is_not_active, index))
        await disk.replace_downstairs(index, offline=True)
        await wait_for_status(disk, all_active)
    await vm.run("echo 3 >/proc/sys/vm/drop_caches")
    assert await vm.run("head -c 16 /dev/vda | tr -d '\\001'") == "changed"
    assert image.read_bytes() == b"original".ljust(MIB, b"\1")
    await vm.stop()
    first, *others = await replicas(disk)
    assert others == [first] * 2
