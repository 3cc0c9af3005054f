"""A volume with three good replicas, under a real guest."""

from __future__ import annotations

import pytest
from volume_checks import ACTIVE, DRIVER, MICRO, WRITE, replicas

from pytest_propolis import CrucibleDiskFactory, VmFactory
from pytest_propolis.propolis_api import UpstairsInfoStatus
from pytest_propolis.settings import BootKind


@pytest.mark.parametrize("boot", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
async def test_what_the_guest_writes_is_in_all_three_replicas(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, boot: BootKind
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("vm", boot=boot, disks=(disk,), **MICRO)
    written = (await vm.run(WRITE)).split()[0]
    assert await vm.run("cat /sys/block/vda/queue/logical_block_size") == "4096"
    status = await disk.status()
    assert status.state is UpstairsInfoStatus.ACTIVE
    assert [target.state for target in status.targets] == [ACTIVE] * 3
    assert [target.target_addr for target in status.targets] == list(disk.targets)
    await vm.stop()
    assert await replicas(disk) == [written] * 3


async def test_what_the_guest_wrote_is_there_after_a_reset_and_for_its_successor(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    first = await vm_factory.start("first", disks=(disk,), **MICRO)
    written = (await first.run(WRITE)).split()[0]
    await first.reset()
    await first.wait_to_boot()
    assert (await first.run(f"{DRIVER}; sha256sum </dev/vda")).split()[0] == written
    await first.stop()
    second = await vm_factory.successor(first)
    await second.launch()
    await second.wait_to_boot()
    assert (await second.run(f"{DRIVER}; sha256sum </dev/vda")).split()[0] == written
    assert (await disk.status()).generation == 2


async def test_a_disk_is_attached_to_a_vm_that_runs(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    vm = await vm_factory.start("vm", **MICRO)
    disk = await crucible_disk_factory(size_mib=64, block_size=512)
    device = await vm.attach(disk)
    assert device == "/dev/vda"
    written = (await vm.run(WRITE)).split()[0]
    assert await vm.run("cat /sys/block/vda/queue/logical_block_size") == "512"
    assert (await vm.get_spec()).value == vm.spec
    await vm.stop()
    assert await replicas(disk) == [written] * 3
