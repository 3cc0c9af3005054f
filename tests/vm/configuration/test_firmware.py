"""What the BIOS boots: the order of disks."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from boot_sectors import boot_disk

from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory


@pytest.fixture
def disks(tmp_path: Path) -> tuple[DataDisk, DataDisk]:
    """Two disks that can be booted from, on different controllers."""
    for name in "AB":
        (tmp_path / name).write_bytes(boot_disk(f"<booted from {name}>"))
    return (
        DataDisk(name="disk-a", image=tmp_path / "A", interface="virtio"),
        DataDisk(name="disk-b", image=tmp_path / "B", interface="nvme"),
    )


async def test_the_boot_order_is_kept_in_both_directions(
    vm_factory: VmFactory, disks: tuple[DataDisk, DataDisk]
) -> None:
    async def first(name: str, order: tuple[str, ...]) -> str | None:
        vm = await vm_factory.create(
            name, guest="micro", firmware="bios", cpus=1, memory_mib=128, disks=disks, boot_order=order
        )
        await vm.launch()
        return (await vm.wait_for_serial_output(re.compile("<booted from (.)>"))).groups[0]

    assert list(
        await asyncio.gather(
            first("forth", ("disk-a", "disk-b")), first("back", ("disk-b", "disk-a")), first("one", ("disk-b",))
        )
    ) == ["A", "B", "B"]
