"""Disks over a VM's life: in memory and in files, read-only or not, and which of them the machine boots from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from boot_sectors import boot_disk

from pytest_propolis.errors import ConfigError
from pytest_propolis.propolis_api import BlobStorageBackend
from pytest_propolis.vm.config import DataDisk
from pytest_propolis.vm.factory import VmFactory

MODULES = "modprobe -a virtio_blk nvme"
PCI_LISTING = (
    "cd /sys/bus/pci/devices; for d in *; do echo $d $(cat $d/vendor $d/device $d/class $d/subsystem_device); done"
)


async def test_the_machine_boots_from_a_disk_in_memory_and_again_after_a_reset(vm_factory: VmFactory) -> None:
    disk = DataDisk(name="memory", contents=boot_disk("<booted>"), readonly=True)
    vm = await vm_factory.create(
        guest="micro", firmware="bios", cpus=1, memory_mib=128, disks=(disk,), boot_order=("memory",)
    )
    await vm.launch()
    for _ in range(2):
        await vm.wait_for_serial_output("<booted>")
        await vm.reset()


async def test_what_a_guest_writes_on_a_disk_in_memory_survives_its_reboot_and_leaves_the_spec_alone(
    vm_factory: VmFactory,
) -> None:
    disk = DataDisk(name="memory", size_mib=1, in_memory=True)
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, disks=(disk,))
    await vm.run(MODULES)
    await vm.run("echo kept | dd of=/dev/vda conv=fsync 2>/dev/null")
    await vm.graceful_reboot()
    await vm.run(MODULES)
    assert await vm.run("head -n 1 /dev/vda") == "kept"
    assert (await vm.get_spec()).value == vm.spec
    backend = vm.spec.components["memory-backend"].component
    assert isinstance(backend, BlobStorageBackend)
    assert set(backend.base64) <= {"A", "="}


@pytest.mark.parametrize("in_memory", [False, True], ids=["in-a-file", "in-memory"])
@pytest.mark.parametrize(
    "path", [Path("etc/passwd"), "./etc/passwd", Path("~/etc/passwd")], ids=["path", "text", "home"]
)
async def test_the_path_of_an_image_means_what_it_means_in_the_test(
    vm_factory: VmFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path, in_memory: bool
) -> None:
    image = tmp_path / "etc" / "passwd"  # a file below the root directory, too, which is the agent's own
    image.parent.mkdir()
    image.write_bytes(b"mine".ljust(1 << 16, b"\0"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    disk = DataDisk(name="relative", image=path, in_memory=in_memory)
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, disks=(disk,))
    await vm.run(MODULES)
    assert await vm.run("head -c 4 /dev/vda") == "mine"


async def test_an_image_whose_name_no_message_can_carry_is_refused(vm_factory: VmFactory, tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"\xff.img")
    image.write_bytes(bytes(1 << 16))
    with pytest.raises(ConfigError, match=r"the image of data disk 'd': the path .* is not text in UTF-8"):
        await vm_factory.start(guest="micro", disks=(DataDisk(name="d", image=image),))


async def test_an_image_is_copied_into_memory_and_is_not_written_to(vm_factory: VmFactory, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"original".ljust(1 << 16, b"\0"))
    disk = DataDisk(name="copy", image=image, in_memory=True, interface="nvme")
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, disks=(disk,))
    await vm.run(MODULES)
    await vm.run("until [ -b /dev/nvme0n1 ]; do usleep 50000; done")
    assert await vm.run("head -c 8 /dev/nvme0n1") == "original"
    await vm.run("echo overwritten | dd of=/dev/nvme0n1 conv=fsync,notrunc 2>/dev/null")
    assert image.read_bytes().startswith(b"original")


async def test_a_file_disk_that_is_read_only_cannot_be_written(vm_factory: VmFactory, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"original".ljust(1 << 16, b"\0"))
    disk = DataDisk(name="data", image=image, readonly=True)
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, disks=(disk,))
    await vm.run(MODULES)
    assert await vm.run("cat /sys/block/vda/ro") == "1"
    assert (await vm.run_result("dd if=/dev/zero of=/dev/vda count=1 conv=fsync")).status != 0
    assert await vm.run("head -c 8 /dev/vda") == "original"


async def test_the_devices_of_a_machine_are_the_same_after_it_was_made_again(vm_factory: VmFactory) -> None:
    disks = (
        DataDisk(name="one", size_mib=1, in_memory=True),
        DataDisk(name="two", size_mib=1, interface="nvme", pci_slot=20),
    )
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, disks=disks)
    first = await vm.run(PCI_LISTING)
    assert re.search(r"^0000:00:04\.0 0x1af4 ", first, re.MULTILINE)
    assert re.search(r"^0000:00:14\.0 0x1b36 0x0010 0x010802", first, re.MULTILINE)
    await vm.stop()
    await vm.boot()
    assert await vm.run(PCI_LISTING) == first
