"""Images of the test as disks: unchanged, or refused with the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from mounts import loop_device
from qcow2_images import qemu_img, with_backing_file, with_data_file
from raw_disk_server import write_raw_disk_server

from pytest_propolis import ArtifactError, DataDisk, ImageDisk, Nic, PropolisError
from pytest_propolis.session.run import Run
from pytest_propolis.settings import BootKind
from pytest_propolis.vm.factory import VmFactory

FINDS_DISKS = "modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done"


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 1 MiB that begins with a word."""
    (tmp_path / "blocks").write_bytes(b"of a device".ljust(1 << 20, b"\0"))
    with loop_device(tmp_path / "blocks") as device:
        yield device


@pytest.mark.parametrize("boot", ["warm", "cold"])
async def test_the_end_of_an_image_is_on_a_disk_of_large_blocks(
    vm_factory: VmFactory, tmp_path: Path, boot: BootKind
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"A" * 4096 + b"B" * 512)
    disks = (
        DataDisk(name="a", image=image, block_size=4096),
        DataDisk(name="b", image=image, block_size=4096, interface="nvme"),
    )
    vm = await vm_factory.start(guest="micro", boot=boot, disks=disks)
    await vm.run(FINDS_DISKS)
    await vm.run("modprobe nvme; until [ -b /dev/nvme0n1 ]; do sleep 0.1; done")
    for device in ("vda", "nvme0n1"):
        assert await vm.run(f"dd if=/dev/{device} bs=4096 skip=1 2>/dev/null | tr -d '\\0' | wc -c") == "512"


@pytest.mark.parametrize("in_memory", [False, True])
async def test_a_container_whose_format_is_not_stated_is_refused(
    vm_factory: VmFactory, tmp_path: Path, in_memory: bool
) -> None:
    image = tmp_path / "cloud.img"
    qemu_img("create", "-f", "qcow2", image, "1M")
    disk = DataDisk(name="a", image=image, in_memory=in_memory)
    with pytest.raises(ArtifactError, match=f'{image} is a qcow2 file(.|\n)*image_format="qcow2"'):
        await vm_factory.start(guest="micro", disks=(disk,))


async def test_a_container_is_shown_as_it_is_where_that_is_stated(vm_factory: VmFactory, tmp_path: Path) -> None:
    image = tmp_path / "cloud.img"
    qemu_img("create", "-f", "qcow2", image, "1M")
    disk = DataDisk(name="a", image=image, image_format="raw")
    vm = await vm_factory.start(guest="micro", disks=(disk,))
    await vm.run(FINDS_DISKS)
    assert await vm.run_bytes("head -c 4 /dev/vda") == b"QFI\xfb"


async def as_data_disk(_run: Run, factory: VmFactory, image: Path) -> None:
    await factory.start(guest="micro", disks=(DataDisk(name="a", image=image, image_format="qcow2"),))


async def as_image_disk(_run: Run, factory: VmFactory, image: Path) -> None:
    await factory.start(guest="micro", disks=(ImageDisk(image),))


async def as_boot_disk(_run: Run, factory: VmFactory, image: Path) -> None:
    await factory.create(guest="micro", firmware="bios", boot_disk=image)


async def as_disk_of_a_server_of_raw_disks(_run: Run, factory: VmFactory, image: Path) -> None:
    disk = DataDisk(name="a", image=image, image_format="qcow2")
    await factory.create(guest="micro", server=write_raw_disk_server(image.parent), disks=(disk,))


async def as_fork(run: Run, _factory: VmFactory, image: Path) -> None:
    async with run.image_fork_factory() as fork:
        await fork(image)


async def as_crucible_disk(run: Run, _factory: VmFactory, image: Path) -> None:
    async with run.crucible_disk_factory() as disks:
        await disks(size_mib=1, image=image, image_format="qcow2")


@pytest.mark.parametrize("make", [with_data_file, with_backing_file])
@pytest.mark.parametrize(
    "use",
    [as_data_disk, as_image_disk, as_boot_disk, as_disk_of_a_server_of_raw_disks, as_fork, as_crucible_disk],
)
async def test_an_image_that_names_a_file_elsewhere_is_refused(
    propolis: Run,
    vm_factory: VmFactory,
    tmp_path: Path,
    use: Callable[[Run, VmFactory, Path], Awaitable[None]],
    make: Callable[[Path, Path], Path],
) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    (tmp_path / "images").mkdir()
    image = make(tmp_path / "images" / "downloaded.qcow2", tmp_path / "secret")
    with pytest.raises(ArtifactError, match=f"{image} names {tmp_path}/secret"):
        await use(propolis, vm_factory, image)


async def as_unstated_crucible_disk(run: Run, _factory: VmFactory, image: Path) -> None:
    async with run.crucible_disk_factory() as disks:
        await disks(size_mib=1, image=image)


@pytest.mark.parametrize("use", [as_image_disk, as_boot_disk, as_fork, as_unstated_crucible_disk])
async def test_a_container_under_the_name_of_a_raw_image_is_refused(
    propolis: Run, vm_factory: VmFactory, tmp_path: Path, use: Callable[[Run, VmFactory, Path], Awaitable[None]]
) -> None:
    image = tmp_path / "cloud.img"
    qemu_img("create", "-f", "qcow2", image, "1M")
    with pytest.raises(ArtifactError, match=f"{image} is a qcow2 file, and its format was not stated"):
        await use(propolis, vm_factory, image)


async def test_a_container_that_is_not_qcow2_is_called_what_it_is(
    propolis: Run, vm_factory: VmFactory, tmp_path: Path
) -> None:
    image = tmp_path / "disk.vmdk"
    qemu_img("create", "-f", "vmdk", image, "4M")
    with pytest.raises(ArtifactError, match=f"{image} is a vmdk file(.|\n)*convert it with qemu-img"):
        await vm_factory.start(guest="micro", disks=(DataDisk(name="a", image=image),))
    with pytest.raises(ArtifactError, match=f"{image} is not a qcow2 image; it looks like vmdk"):
        await as_image_disk(propolis, vm_factory, image)


async def test_a_block_device_is_a_disk(vm_factory: VmFactory, block_device: Path) -> None:
    vm = await vm_factory.start(guest="micro", disks=(DataDisk(name="a", image=block_device),))
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
