"""Initial contents of replicated disks: a FAT file system, an artifact by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from volume_checks import DRIVER, MICRO, all_active, replicas, wait_for_status

from pytest_propolis import ConfigError, CrucibleDiskFactory, FatDisk, VmFactory

MOUNT = "modprobe vfat; mkdir -p /mnt; mount -t vfat /dev/vdb /mnt"


async def test_a_guest_reads_and_writes_a_fat_volume_while_a_replica_is_replaced(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64, block_size=512, fat=FatDisk(files={"hello.txt": "hello"}))
    vm = await vm_factory.start("vm", guest="alpine", disks=(disk,))
    await vm.run(f"{MOUNT} && printf new > /mnt/new && umount /mnt")
    await disk.replace_downstairs(0)
    await wait_for_status(disk, all_active)
    assert await vm.run(f"{MOUNT} && cat /mnt/hello.txt /mnt/new; umount /mnt") == "hellonew"
    await vm.stop()
    first, *others = await replicas(disk)
    assert others == [first] * 2


async def test_an_empty_replica_that_replaces_one_before_the_first_vm_gets_the_file_system(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    fat = FatDisk(files={"hello.txt": "hello"}, size_kib=64)
    disk = await crucible_disk_factory(size_mib=64, block_size=512, fat=fat)
    await disk.replace_downstairs(1)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    await wait_for_status(disk, all_active)
    seen = (await vm.run(f"{DRIVER}; dd if=/dev/vda bs=64k count=1 2>/dev/null | sha256sum")).split()[0]
    assert seen == hashlib.sha256(fat.contents()).hexdigest()
    await vm.stop()
    first, *others = await replicas(disk)
    assert others == [first] * 2


async def test_a_volume_lies_over_the_disk_of_a_guest(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64, block_size=512, image="alpine")
    assert disk.size_bytes >= 1 << 30
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    magic = await vm.run(f"{DRIVER}; dd if=/dev/vda bs=1 skip=1080 count=2 2>/dev/null | od -An -tx1")
    assert magic.split() == ["53", "ef"]  # of ext4


@pytest.mark.parametrize("image", [Path("own.raw"), "./own.raw", "~/own.raw"], ids=["path", "text", "home"])
async def test_the_path_of_an_image_means_what_it_means_in_the_test(
    crucible_disk_factory: CrucibleDiskFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | Path
) -> None:
    await crucible_disk_factory("first", size_mib=1)  # the agent has its directories from here on
    (tmp_path / "own.raw").write_bytes(bytes(3 << 20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await crucible_disk_factory(size_mib=1, image=image)).size_bytes == 3 << 20


async def test_sources_that_cannot_be_are_refused(crucible_disk_factory: CrucibleDiskFactory) -> None:
    with pytest.raises(ConfigError, match="has an image and a FAT file system"):
        await crucible_disk_factory(image="alpine", fat=FatDisk())
    with pytest.raises(ConfigError, match="FAT file system has sectors of 512 bytes"):
        await crucible_disk_factory(fat=FatDisk())
    with pytest.raises(ConfigError, match="no artifact and no guest named 'alpin'"):
        await crucible_disk_factory(image="alpin")
