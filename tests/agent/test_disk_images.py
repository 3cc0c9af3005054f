"""Disks that the agent creates for its clients."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_propolis.agent.disks.disk_images import make_image
from pytest_propolis.agent_api.disks import CreateDisk
from pytest_propolis.errors import ArtifactCorrupt, ConfigError
from pytest_propolis.storage.images.overlays import image_info

QEMU_IMG = Path(shutil.which("qemu-img") or "qemu-img")

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


async def test_a_relative_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(512))
    with pytest.raises(ConfigError, match=r"'disk\.img' is a relative path"):
        await make_image(CreateDisk(image="disk.img"), QEMU_IMG, tmp_path / "fork.qcow2", allowed=())
    assert not (tmp_path / "fork.qcow2").exists()


@pytest.mark.parametrize(("block_size", "size_bytes"), [(512, 4608), (4096, 8192)])
async def test_a_disk_has_whole_blocks(tmp_path: Path, block_size: int, size_bytes: int) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4608))
    request = CreateDisk(image=str(tmp_path / "disk.img"), block_size=block_size)
    await make_image(request, QEMU_IMG, tmp_path / "fork.qcow2", allowed=())
    info = await image_info(qemu_img=QEMU_IMG, image=tmp_path / "fork.qcow2")
    assert info.virtual_size_bytes == size_bytes


async def test_a_raw_disk_given_as_qcow2_is_told_how_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    request = CreateDisk(image=str(tmp_path / "disk.raw"), image_format="qcow2")
    with pytest.raises(ArtifactCorrupt, match="not a qcow2 image; it looks like a raw disk") as refused:
        await make_image(request, QEMU_IMG, tmp_path / "fork.qcow2", allowed=())
    assert "qemu-img convert -f raw -O qcow2" in str(refused.value)
