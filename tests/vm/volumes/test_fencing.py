"""Generations: the VM with the higher one has the volume, and the other one cannot write any more."""

from __future__ import annotations

import pytest
from volume_checks import ACTIVE, MICRO, WRITE, all_active, begin_to_write, end_of_writing, replicas, wait_for_status

from pytest_propolis import ApiError, ConfigError, CrucibleDiskFactory, InstanceState, VmFactory


async def test_a_vm_with_a_higher_generation_fences_the_other_one_off(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    old = await vm_factory.start("old", disks=(disk,), **MICRO)
    await begin_to_write(old)
    with pytest.raises(ConfigError, match="attached to VM 'old'"):
        await vm_factory.start("new", disks=(disk,), **MICRO)
    disk.set_generation(2)
    new = await vm_factory.start("new", disks=(disk,), **MICRO)
    written = (await new.run(WRITE)).split()[0]
    await old.wait_for_state(InstanceState.FAILED)
    assert "generation 2 has taken over" in ((await old.extended_info()).failure or "")
    await wait_for_status(disk, all_active)
    await new.stop()
    assert await replicas(disk) == [written] * 3


async def test_a_replacement_that_is_refused_or_forced_leaves_the_disk_with_its_vm(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    await disk.kill(1)
    await wait_for_status(disk, lambda status: status.targets[1].state != ACTIVE)
    with pytest.raises(ApiError, match="is offline"):
        await disk.replace_downstairs(2)
    with pytest.raises(ConfigError, match="attached to VM 'vm'"):
        await vm_factory.start("other", disks=(disk,), **MICRO)
    await disk.replace_downstairs(1, offline=True)
    await wait_for_status(disk, all_active)
    with pytest.raises(ConfigError, match="attached to VM 'vm'"):
        await vm_factory.start("other", disks=(disk,), **MICRO)
    assert await vm.get_state() is InstanceState.RUNNING


async def test_a_guest_migrates_while_a_replica_is_repaired(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("source", disks=(disk,), **MICRO)
    await vm.run("modprobe virtio_blk; dd if=/dev/urandom of=/dev/vda bs=1M seek=32 count=32 conv=fsync 2>/dev/null")
    await begin_to_write(vm)
    await disk.slow(1, delay_ms=20)
    await disk.replace_downstairs(0)
    await wait_for_status(disk, lambda status: status.live_repair_in_progress)
    target = await vm_factory.successor(vm)
    await target.migrate_from(vm)
    await target.wait_for_state(InstanceState.RUNNING)
    await disk.slow(1, delay_ms=0)
    written = await end_of_writing(target)
    await wait_for_status(disk, all_active)
    await target.stop()
    assert await replicas(disk) == [written] * 3


async def test_a_guest_migrates_with_its_volume_while_it_writes(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("source", disks=(disk,), **MICRO)
    await begin_to_write(vm)
    for generation in (2, 3):
        target = await vm_factory.successor(vm)
        await target.migrate_from(vm)
        await target.wait_for_state(InstanceState.RUNNING)
        await vm.wait_for_state(InstanceState.DESTROYED)
        vm = target
        assert (await disk.status()).generation == generation
    written = await end_of_writing(vm)
    await wait_for_status(disk, all_active)
    await vm.stop()
    assert await replicas(disk) == [written] * 3
