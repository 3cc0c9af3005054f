"""Disks that are forked from artifacts, and boot disks of a test's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from boot_sectors import boot_disk

from pytest_propolis import ConfigError, ImageDisk, InstanceState
from pytest_propolis.session.run import Run
from pytest_propolis.settings import BootKind
from pytest_propolis.storage.catalogs.catalog import read_catalogs
from pytest_propolis.vm.disks.image_fork_factory import ImageForkFactory
from pytest_propolis.vm.factory import VmFactory

FINDS_DISKS = "modprobe virtio_blk; until [ -b /dev/vda ]; do sleep 0.1; done"


@pytest.fixture
def catalog(propolis: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog with the artifacts `my-image` and `my-boot-disk`."""
    lines = ["remote_server_uris = []"]
    for name, content in (("my-image", b"of my own".ljust(1 << 20, b"\0")), ("my-boot-disk", boot_disk("it boots\n"))):
        (tmp_path / f"{name}.raw").write_bytes(content)
        lines += [
            f"[artifacts.{name}]",
            f"filename = '{name}.raw'",
            "kind = 'file'",
            f"source = {{ local_path = {{ path = '{tmp_path}', sha256 = '{hashlib.sha256(content).hexdigest()}' }} }}",
        ]
    (tmp_path / "artifacts.toml").write_text("\n".join(lines))
    monkeypatch.setattr(propolis, "catalog", read_catalogs([tmp_path / "artifacts.toml"]))


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize("boot", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
async def test_an_artifact_is_a_disk_by_its_name(vm_factory: VmFactory, tmp_path: Path, boot: BootKind) -> None:
    vm = await vm_factory.start(guest="micro", boot=boot, disks=(ImageDisk("my-image"),))
    await vm.run(FINDS_DISKS)
    assert await vm.run("head -c 9 /dev/vda; echo changed >/dev/vda; sync") == "of my own"
    assert "my-image" in vm.spec.components
    assert (tmp_path / "my-image.raw").read_bytes()[:9] == b"of my own"
    again = await vm_factory.start("again", guest="micro", disks=(ImageDisk(tmp_path / "my-image.raw", name="other"),))
    await again.run(FINDS_DISKS)
    assert await again.run("head -c 9 /dev/vda") == "of my own"


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize("named", [True, False])
async def test_a_vm_boots_from_an_artifact(vm_factory: VmFactory, tmp_path: Path, named: bool) -> None:
    vm = await vm_factory.create(
        guest="micro", firmware="bios", boot_disk="my-boot-disk" if named else tmp_path / "my-boot-disk.raw"
    )
    await vm.launch()
    await vm.wait_for_serial_output("it boots")


@pytest.mark.parametrize("image", [Path("own.raw"), "./own.raw", "~/own.raw"], ids=["path", "text", "home"])
async def test_the_path_of_a_boot_disk_means_what_it_means_in_the_test(
    vm_factory: VmFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | Path
) -> None:
    (tmp_path / "own.raw").write_bytes(boot_disk("my own\n"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    vm = await vm_factory.create(guest="micro", firmware="bios", boot_disk=image)
    await vm.launch()
    await vm.wait_for_serial_output("my own")


@pytest.mark.slow
async def test_a_guest_boots_the_same_from_its_image_by_name(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="alpine", boot_disk="alpine", disks=(ImageDisk("alpine", name="second"),))
    assert vm.boot_kind == "cold"
    assert await vm.run("cmp -n 512 /dev/vda /dev/vdb && echo same") == "same"


@pytest.mark.parametrize("fields", [{"disks": (ImageDisk("my-imag"),)}, {"boot_disk": "my-imag"}])
async def test_an_image_that_does_not_exist_is_an_error_that_names_it(
    vm_factory: VmFactory, fields: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="there is no artifact and no guest named 'my-imag'"):
        await vm_factory.start(guest="micro", **fields)  # type: ignore[arg-type]


def test_a_name_that_no_device_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="image disk: 'boot-disk' cannot be its name"):
        ImageDisk("boot-disk")


async def test_a_fork_is_written_to_by_one_vm_at_a_time(
    vm_factory: VmFactory, zfs_artifact_factory: ImageForkFactory, tmp_path: Path
) -> None:
    image = tmp_path / "own.raw"
    image.write_bytes(bytes(1 << 20))
    fork = await zfs_artifact_factory(image)
    await fork.snapshot("clean")
    vm = await vm_factory.start("first", disks=(fork.disk(),), guest="micro")
    for name in ("first", "first-2"):
        taken = f"the fork of {image} is a disk of VM '{name}'"
        with pytest.raises(ConfigError, match=taken):
            await vm_factory.start("second", disks=(fork.disk(readonly=True),), guest="micro")
        with pytest.raises(ConfigError, match=taken):
            await fork.write(b"changed")
        with pytest.raises(ConfigError, match=taken):
            await fork.rollback("clean")
        if name == "first":
            successor = await vm_factory.successor(vm)
            await successor.migrate_from(vm)
            await vm.wait_for_state(InstanceState.DESTROYED)
            vm = successor
    await vm.stop()
    await fork.write(b"changed")
    for name in ("reader", "other-reader"):
        await vm_factory.start(name, disks=(fork.disk(readonly=True),), guest="micro")
