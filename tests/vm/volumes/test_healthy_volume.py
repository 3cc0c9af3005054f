"""A volume with three good replicas, under a real guest."""

from __future__ import annotations

from pathlib import Path

import pytest
from volume_checks import ACTIVE, DRIVER, MICRO, WRITE, replicas

from pytest_propolis import ConfigError, CrucibleDisk, CrucibleDiskFactory, VmFactory
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


async def test_the_fixture_is_1_gib_without_content_and_has_three_downstairs(crucible_disk: CrucibleDisk) -> None:
    (region,) = crucible_disk.vcr()["sub_volumes"]
    assert region["block_size"] * region["blocks_per_extent"] * region["extent_count"] == 1 << 30
    assert (region["block_size"], region["generation"]) == (4096, 1)
    assert crucible_disk.vcr()["read_only_parent"] is None
    downstairs = (await crucible_disk.facts()).downstairs
    assert region["opts"]["target"] == [item.address for item in downstairs]
    assert len(downstairs) == 3
    assert all(Path(item.path).stat().st_blocks * 512 < 1 << 20 for item in downstairs)


async def test_a_fault_for_a_downstairs_that_is_not_there_names_the_disk(crucible_disk: CrucibleDisk) -> None:
    for index in (-1, 3):
        for fault in (crucible_disk.kill, crucible_disk.replace_downstairs):
            with pytest.raises(ConfigError, match=rf"'crucible-disk' has no downstairs {index}\n.*choose 0 to 2"):
                await fault(index)
    with pytest.raises(ConfigError, match="512 bytes at 1073741824 are not in a volume of 1073741824 bytes"):
        await crucible_disk.corrupt(0, 1 << 30)
