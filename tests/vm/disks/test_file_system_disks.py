"""Disks whose file system is made from files, as guests read them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_propolis import CloudInitDisk, ConfigError, FatDisk, VmFactory
from pytest_propolis.errors import ArtifactMissing, CapabilityMissing
from pytest_propolis.settings import BootKind


@pytest.mark.parametrize("boot", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
async def test_a_guest_reads_a_fat_disk_in_its_slot(vm_factory: VmFactory, tmp_path: Path, boot: BootKind) -> None:
    (tmp_path / "copied").write_bytes(b"from a file")
    files: dict[str, str | bytes | Path] = {
        "hello world.txt": "Hello!",
        "COPIED": tmp_path / "copied",
        "bytes": b"\0\1",
    }
    disk = FatDisk(files=files, readonly=True, pci_slot=24)
    vm = await vm_factory.start(guest="alpine", boot=boot, disks=(disk,))
    await vm.run("modprobe vfat; mkdir -p /mnt; mount -t vfat -o ro /dev/vdb /mnt")
    assert await vm.run("cat '/mnt/hello world.txt' /mnt/COPIED") == "Hello!from a file"
    assert await vm.run_bytes("cat /mnt/bytes") == b"\0\1"
    assert "0000:00:18.0" in await vm.run("readlink -f /sys/block/vdb")


async def test_what_a_guest_writes_to_a_fat_disk_is_there_until_it_ends(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="alpine", disks=(FatDisk(files={"kept": "kept"}, size_kib=64),))
    await vm.run("modprobe vfat; mkdir -p /mnt; mount -t vfat /dev/vdb /mnt; echo new > /mnt/new; umount /mnt")
    assert await vm.run("mount -t vfat /dev/vdb /mnt; cat /mnt/kept /mnt/new") == "keptnew"


async def test_a_guest_finds_the_seed_of_cloud_init_by_its_label(vm_factory: VmFactory) -> None:
    disk = CloudInitDisk(user_data="#cloud-config\n", network_config="version: 2\n")
    vm = await vm_factory.start(guest="alpine", disks=(disk,))
    assert 'LABEL="cidata"' in await vm.run("blkid /dev/vdb")
    await vm.run("modprobe isofs; mkdir -p /mnt; mount -t iso9660 -o ro /dev/vdb /mnt")
    assert await vm.run("ls -1 /mnt") == "meta-data\nnetwork-config\nuser-data"
    assert await vm.run("cat /mnt/user-data /mnt/network-config") == "#cloud-config\nversion: 2"
    assert (await vm.run("cat /mnt/meta-data")).startswith("instance-id: ")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"files": {"a/b": ""}}, "FAT disk 'fat': 'a/b' is in a directory"),
        ({"files": {"a": b"x" * (1 << 20)}}, "FAT disk 'fat': the files need"),
        ({"files": {"a": 3}}, "FAT disk 'fat': files is"),
        ({"files": ["a"]}, "FAT disk 'fat': files is"),
        ({"label": "too long a label"}, "FAT disk 'fat': label is"),
        ({"size_kib": 2048}, "FAT disk 'fat': size_kib is 2048"),
        ({"name": "com1"}, "com1"),
    ],
)
def test_a_fat_disk_that_cannot_be_is_refused_when_it_is_described(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        FatDisk(**fields)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"FAT disk 'fat': .*No such file.*nothing"):
        FatDisk(files={"a": tmp_path / "nothing"})


async def test_without_pycdlib_the_error_names_the_extra(
    vm_factory: VmFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycdlib", None)
    with pytest.raises(CapabilityMissing, match="pycdlib, which is not installed") as caught:
        await vm_factory.start(guest="micro", disks=(CloudInitDisk(user_data=""),))
    assert "pytest-propolis[iso]" in (caught.value.hint or "")
