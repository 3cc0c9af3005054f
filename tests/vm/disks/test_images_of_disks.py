"""Images of the test as disks: unchanged, or refused with the reason."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import as_root

from pytest_propolis import ArtifactError, DataDisk, Nic, PropolisError
from pytest_propolis.settings import BootKind
from pytest_propolis.vm.factory import VmFactory

FINDS_DISKS = "modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done"


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 1 MiB that begins with a word."""
    (tmp_path / "blocks").write_bytes(b"of a device".ljust(1 << 20, b"\0"))
    made = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "blocks"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    try:
        yield Path(made.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.mark.parametrize("boot", ["warm", "cold"])
async def test_the_end_of_an_image_is_on_a_disk_of_large_blocks(
    vm_factory: VmFactory, tmp_path: Path, boot: BootKind
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"A" * 4096 + b"B" * 512)
    vm = await vm_factory.start(guest="micro", boot=boot, disks=(DataDisk(name="a", image=image, block_size=4096),))
    await vm.run(FINDS_DISKS)
    assert await vm.run("dd if=/dev/vda bs=4096 skip=1 2>/dev/null | tr -d '\\0' | wc -c") == "512"


@pytest.mark.parametrize("in_memory", [False, True])
async def test_a_container_whose_format_is_not_stated_is_refused(
    vm_factory: VmFactory, tmp_path: Path, in_memory: bool
) -> None:
    image = tmp_path / "cloud.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    disk = DataDisk(name="a", image=image, in_memory=in_memory)
    with pytest.raises(ArtifactError, match=f'{image} is a qcow2 file(.|\n)*image_format="qcow2"'):
        await vm_factory.start(guest="micro", disks=(disk,))


async def test_a_container_is_shown_as_it_is_where_that_is_stated(vm_factory: VmFactory, tmp_path: Path) -> None:
    image = tmp_path / "cloud.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    disk = DataDisk(name="a", image=image, image_format="raw")
    vm = await vm_factory.start(guest="micro", disks=(disk,))
    await vm.run(FINDS_DISKS)
    assert await vm.run_bytes("head -c 4 /dev/vda") == b"QFI\xfb"


async def test_an_image_that_names_a_file_elsewhere_is_refused(vm_factory: VmFactory, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "downloaded.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "secret", image], check=True
    )
    with pytest.raises(ArtifactError, match=f"{image} names {tmp_path}/secret"):
        await vm_factory.start(guest="micro", disks=(DataDisk(name="a", image=image, image_format="qcow2"),))


@as_root
async def test_a_block_device_is_a_disk(vm_factory: VmFactory, loop_device: Path) -> None:
    vm = await vm_factory.start(guest="micro", disks=(DataDisk(name="a", image=loop_device),))
    await vm.run(FINDS_DISKS)
    assert await vm.run("head -c 11 /dev/vda") == "of a device"


@pytest.mark.parametrize(
    ("path", "kind"), [("/dev/zero", "neither a file nor a block device"), ("/etc", "a directory")]
)
async def test_what_is_no_disk_is_said_to_be_what_it_is(vm_factory: VmFactory, path: str, kind: str) -> None:
    with pytest.raises(ArtifactError, match=f"{path} is {kind}"):
        await vm_factory.start(guest="micro", disks=(DataDisk(name="a", image=Path(path)),))


@pytest.mark.parametrize("boot", ["warm", "cold"])
async def test_a_card_whose_switch_is_not_there_is_refused(
    vm_factory: VmFactory, tmp_path: Path, boot: BootKind
) -> None:
    with pytest.raises(PropolisError, match=f"no switch listens at {tmp_path}/switch"):
        await vm_factory.start(guest="micro", boot=boot, nics=(Nic(link=f"unix:{tmp_path}/switch"),))
