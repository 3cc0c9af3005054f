"""Replicated disks with other interfaces, as boot disks, and their snapshots."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from boot_sectors import boot_disk
from volume_checks import MICRO, WRITE, replicas

from pytest_propolis import ApiError, CrucibleDiskFactory, VmFactory


@pytest.mark.slow
async def test_an_nvme_disk_survives_the_death_of_a_replica(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("vm", disks=(disk.disk(interface="nvme"),), **MICRO)
    await vm.run("modprobe nvme; until [ -b /dev/nvme0n1 ]; do usleep 20000; done")
    await disk.kill(0)
    await vm.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=16 conv=fsync 2>/dev/null")
    written = (await vm.run("sha256sum </dev/nvme0n1")).split()[0]
    await vm.stop()
    assert (await replicas(disk))[1:] == [written] * 2


async def test_a_vm_boots_from_a_volume(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory, tmp_path: Path
) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(boot_disk("<booted>"))
    disk = await crucible_disk_factory("volume", size_mib=64, block_size=512, image=image)
    vm = await vm_factory.create("vm", firmware="bios", disks=(disk,), boot_order=("volume",), **MICRO)
    await vm.launch()
    await vm.wait_for_serial_output("<booted>")


@pytest.mark.slow
async def test_a_snapshot_keeps_what_the_volume_held(
    crucible_disk_factory: CrucibleDiskFactory, vm_factory: VmFactory
) -> None:
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("vm", disks=(disk,), **MICRO)
    before = (await vm.run(WRITE)).split()[0]
    snapshot = await disk.snapshot()
    with pytest.raises(ApiError, match="there already") as refusal:
        await disk.snapshot(snapshot)
    assert refusal.value.status == 400
    after = (await vm.run(WRITE)).split()[0]
    facts = await disk.facts()
    kept = [Path(path) for downstairs in facts.downstairs for path in downstairs.snapshots]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept] == [before] * 3
    await vm.stop()
    assert await replicas(disk) == [after] * 3
