"""Disks at a server program that reads raw files alone, as `propolis-server` does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from raw_disk_server import write_raw_disk_server
from server_program import server_program

from pytest_propolis import DataDisk
from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.propolis_api import FileStorageBackend
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

SMALL: Final[dict[str, Any]] = {"guest": "micro", "cpus": 1, "memory_mib": 128}
MIB: Final = 1 << 20
FINDS_DISKS: Final = "modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done"


@pytest.fixture
def raw_server(tmp_path: Path) -> Path:
    return write_raw_disk_server(tmp_path)


def disk_files(vm: TestVm) -> list[Path]:
    components = [component.component for component in vm.spec.components.values()]
    return [Path(component.path) for component in components if isinstance(component, FileStorageBackend)]


def image_of(tmp_path: Path, image_format: str) -> Path:
    raw = tmp_path / "content.raw"
    with raw.open("wb") as file:
        file.write(b"here")
        file.truncate(64 * MIB)
    if image_format == "raw":
        return raw
    image = tmp_path / "content.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    return image


@pytest.mark.slow
async def test_a_guest_boots_from_a_raw_copy_of_its_image(vm_factory: VmFactory, raw_server: Path) -> None:
    vm = await vm_factory.start(guest="alpine", server=raw_server)
    (file,) = disk_files(vm)
    assert file.suffix == ".raw"
    assert file.stat().st_blocks * 512 < file.stat().st_size, "it is sparse"
    await vm.run("echo written >/root/file; sync")
    assert await vm.run("cat /root/file") == "written"
    await vm_factory.aclose()
    assert not file.exists()


@pytest.mark.parametrize("image_format", ["raw", pytest.param("qcow2", marks=pytest.mark.slow)])
async def test_a_disk_with_an_image_is_a_raw_fork_of_it(
    vm_factory: VmFactory, raw_server: Path, tmp_path: Path, image_format: Any
) -> None:
    image = image_of(tmp_path, image_format)
    before = image.read_bytes()
    disk = DataDisk(name="disk", image=image, image_format=image_format)
    vm = await vm_factory.start(**SMALL, server=raw_server, disks=(disk, DataDisk(name="empty", size_mib=32)))
    await vm.run(FINDS_DISKS)
    assert await vm.run("head -c 4 /dev/vda") == "here"
    await vm.run("printf more >/dev/vda; printf full >/dev/vdb; sync")
    files = disk_files(vm)
    assert [file.read_bytes()[:4] for file in files] == [b"more", b"full"]
    assert [file.stat().st_size for file in files] == [64 * MIB, 32 * MIB]
    assert all(file.stat().st_blocks * 512 < 16 * MIB for file in files), "they are sparse"
    assert image.read_bytes() == before


async def test_the_engine_as_a_program_announces_that_it_reads_qcow2(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL, server="propolis-server-qemu", disks=(DataDisk(name="disk", size_mib=32),))
    assert [file.suffix for file in disk_files(vm)] == [".qcow2"]


async def test_a_server_that_runs_already_is_given_raw_disks(vm_factory: VmFactory) -> None:
    async with server_program("bios", "127.0.0.1:0", "--accelerator", "tcg") as server:
        disks = (DataDisk(name="disk", size_mib=32),)
        vm = await vm_factory.create(guest="micro", server=f"http://{server.address}", disks=disks)
        assert disk_files(vm)[0].suffix == ".raw"
        await vm.launch()
        await vm.wait_for_state("Running")
        await vm.stop()


async def test_a_guest_with_an_overlay_does_not_migrate_to_a_server_that_would_read_it_as_raw(
    vm_factory: VmFactory, raw_server: Path
) -> None:
    vm = await vm_factory.create(**SMALL, server="propolis-server-qemu", disks=(DataDisk(name="disk", size_mib=32),))
    (file,) = disk_files(vm)
    for server in (raw_server, "http://127.0.0.1:9"):
        with pytest.raises(CapabilityMissing, match=f"{server} reads raw disks, and {file} is a qcow2 file"):
            await vm_factory.successor(vm, server=server)


@pytest.mark.slow
async def test_a_guest_migrates_from_a_raw_disk_server_to_the_engine_and_back(
    vm_factory: VmFactory, raw_server: Path
) -> None:
    vm = await vm_factory.start(**SMALL, server=raw_server, disks=(DataDisk(name="disk", size_mib=32),))
    await vm.run(f"{FINDS_DISKS}; printf here >/dev/vda; sync")
    second = await vm_factory.successor(vm, server="engine")
    await second.migrate_from(vm)
    third = await vm_factory.successor(second, server=raw_server)
    await third.migrate_from(second)
    await third.run("echo 3 >/proc/sys/vm/drop_caches")
    assert await third.run("head -c 4 /dev/vda") == "here"
