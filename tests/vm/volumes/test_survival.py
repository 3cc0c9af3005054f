"""A guest that writes and verifies what it has written, while its replicas die, hang, differ and are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio
from crucible_downstairs import write_crucible_downstairs
from volume_checks import (
    ACTIVE,
    MICRO,
    all_active,
    begin_to_write,
    replicas,
    require_equal,
    wait_for_status,
    writes_more,
)

from pytest_propolis import CrucibleDisk, CrucibleDiskFactory, TestVm, VmFactory
from pytest_propolis.propolis_api import ReplaceResult, UpstairsInfo


@pytest_asyncio.fixture(params=["own", pytest.param("program", marks=pytest.mark.slow)])
async def disk(
    crucible_disk_factory: CrucibleDiskFactory, request: pytest.FixtureRequest, tmp_path: Path
) -> CrucibleDisk:
    program = write_crucible_downstairs(tmp_path) if request.param == "program" else None
    return await crucible_disk_factory(size_mib=64, downstairs=program)


@pytest_asyncio.fixture
async def writer(disk: CrucibleDisk, vm_factory: VmFactory) -> TestVm:
    """A VM whose guest writes."""
    vm = await vm_factory.start("writer", disks=(disk,), **MICRO)
    await begin_to_write(vm)
    return vm


async def test_a_downstairs_dies_and_comes_back(writer: TestVm, disk: CrucibleDisk) -> None:
    await disk.kill(1)
    await wait_for_status(disk, lambda status: status.targets[1].state != ACTIVE)
    await writes_more(writer)
    await disk.restart(1)
    await wait_for_status(disk, all_active)
    await writes_more(writer)
    await require_equal(writer, disk)


async def test_a_downstairs_hangs_and_goes_on(writer: TestVm, disk: CrucibleDisk) -> None:
    await disk.pause(2)
    await wait_for_status(disk, lambda status: status.targets[2].state != ACTIVE)
    await writes_more(writer)
    await disk.resume(2)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


@pytest.mark.slow
async def test_a_downstairs_is_cut_off(writer: TestVm, disk: CrucibleDisk) -> None:
    await disk.disconnect(0)
    await writes_more(writer)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def test_a_replica_that_differs_is_repaired(writer: TestVm, disk: CrucibleDisk) -> None:
    await disk.corrupt(1, 0, length=2 << 20)
    await writes_more(writer, 5)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def test_a_downstairs_is_replaced_by_an_empty_one(writer: TestVm, disk: CrucibleDisk) -> None:
    old = disk.targets[0]
    assert await disk.replace_downstairs(0) is ReplaceResult.STARTED
    assert disk.targets[0] != old
    status = await wait_for_status(disk, all_active)
    assert status.targets[0].target_addr == disk.targets[0]
    assert status.generation == 2
    await require_equal(writer, disk)


def missing(*indices: int) -> Callable[[UpstairsInfo], bool]:
    return lambda status: all(status.targets[index].state != ACTIVE for index in indices)


async def test_requests_wait_while_two_replicas_are_missing(writer: TestVm, disk: CrucibleDisk) -> None:
    await disk.kill(0)
    await disk.kill(2)
    await wait_for_status(disk, missing(0, 2))
    # The guest as a whole stands still: it sees neither an error nor the time.
    waiting = asyncio.create_task(writes_more(writer))
    await asyncio.wait([waiting], timeout=1)
    assert not waiting.done()
    await disk.restart(2)
    await waiting
    await disk.restart(0)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def test_requests_wait_while_all_replicas_are_missing(writer: TestVm, disk: CrucibleDisk) -> None:
    for index in range(3):
        await disk.kill(index)
    await wait_for_status(disk, missing(0, 1, 2))
    for index in (2, 0, 1):
        await disk.restart(index)
    await writes_more(writer)
    await wait_for_status(disk, all_active)
    await require_equal(writer, disk)


async def test_a_volume_whose_vm_was_killed_is_made_equal_again(
    writer: TestVm, disk: CrucibleDisk, vm_factory: VmFactory
) -> None:
    count = int(await writer.run("cat /tmp/count"))
    async with writer.expect_exit():
        await vm_factory.agent.remove_vm(writer.id)
    heir = await vm_factory.successor(writer)
    await heir.boot()
    await heir.run("modprobe virtio_blk")
    last = await heir.run(f"dd if=/dev/vda bs=4k count=1 skip={count % 512} 2>/dev/null | head -n 1")
    assert int(last) >= count
    await wait_for_status(disk, all_active)
    await heir.stop()
    first, *others = await replicas(disk)
    assert others == [first] * 2
