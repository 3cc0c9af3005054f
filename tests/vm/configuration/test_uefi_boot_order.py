"""What UEFI boots: PHD's cases on the order of disks."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from efi_disks import HAS_MTOOLS, efi_disk, fat_disk

from pytest_propolis.engine.qemu.binary import find_firmware
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory

pytestmark = [
    pytest.mark.skipif(find_firmware() is None, reason="there is no UEFI firmware (package ovmf)"),
    pytest.mark.skipif(not HAS_MTOOLS, reason="there is nothing to make an EFI system partition with (package mtools)"),
]


@pytest.fixture
def disks(tmp_path: Path) -> tuple[DataDisk, ...]:
    """Two disks that can be booted from, on different controllers, and one that cannot."""
    return (
        DataDisk(name="disk-a", image=efi_disk(tmp_path / "A", "<booted from A>"), interface="virtio"),
        DataDisk(name="disk-b", image=efi_disk(tmp_path / "B", "<booted from B>"), interface="nvme"),
        DataDisk(name="data", image=fat_disk(tmp_path / "data"), interface="virtio"),
    )


async def first(vm_factory: VmFactory, disks: tuple[DataDisk, ...], name: str, order: tuple[str, ...]) -> str | None:
    vm = await vm_factory.create(
        name, guest="micro", firmware="uefi", cpus=1, memory_mib=256, disks=disks, boot_order=order
    )
    await vm.launch()
    return (await vm.wait_for_serial_output(re.compile("<booted from (.)>"), timeout_s=180)).groups[0]


async def test_the_boot_order_is_kept_in_both_directions(vm_factory: VmFactory, disks: tuple[DataDisk, ...]) -> None:
    assert list(
        await asyncio.gather(
            first(vm_factory, disks, "forth", ("disk-a", "disk-b")),
            first(vm_factory, disks, "back", ("disk-b", "disk-a")),
        )
    ) == ["A", "B"]


async def test_a_disk_that_cannot_be_booted_from_is_skipped(vm_factory: VmFactory, disks: tuple[DataDisk, ...]) -> None:
    assert await first(vm_factory, disks, "skipping", ("data", "disk-b", "disk-a")) == "B"
