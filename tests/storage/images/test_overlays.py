"""Disk images that real qemu-img makes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import as_root, mounted, tmpfs

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, CapabilityMissing, ResourceExhausted
from pytest_propolis.storage.images.overlays import check_image, create_blank, create_overlay, image_info

MIB = 1 << 20
QEMU_IMG = Path(shutil.which("qemu-img") or "qemu-img")

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
async def base(tmp_path: Path) -> Path:
    """A qcow2 image of 8 MiB with some content."""
    raw, base = tmp_path / "raw", tmp_path / "base.qcow2"
    raw.write_bytes(os.urandom(MIB) + bytes(7 * MIB))
    subprocess.run([QEMU_IMG, "convert", "-f", "raw", "-O", "qcow2", raw, base], check=True)
    return base


async def overlay_on(backing: Path, *, name: str = "overlay.qcow2", size_bytes: int | None = None) -> Path:
    overlay = backing.parent / name
    await create_overlay(
        qemu_img=QEMU_IMG, backing=backing, overlay=overlay, backing_format="qcow2", size_bytes=size_bytes
    )
    return overlay


async def test_an_overlay_shows_its_backing_image(base: Path) -> None:
    overlay = await overlay_on(base)
    assert subprocess.run([QEMU_IMG, "compare", base, overlay], check=False, capture_output=True).returncode == 0
    info = await image_info(qemu_img=QEMU_IMG, image=overlay)
    assert (info.format, info.virtual_size_bytes, info.backing) == ("qcow2", 8 * MIB, base)
    assert info.allocated_bytes < MIB


async def test_an_overlay_can_be_larger_than_its_backing_image(base: Path) -> None:
    overlay = await overlay_on(base, size_bytes=16 * MIB)
    assert (await image_info(qemu_img=QEMU_IMG, image=overlay)).virtual_size_bytes == 16 * MIB


async def test_a_name_with_a_colon_and_a_comma_is_a_name(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    odd = base.rename(base.parent / "nbd:base,size=1.qcow2")
    await create_overlay(
        qemu_img=QEMU_IMG, backing=Path(odd.name), overlay=Path("fat:o,b.qcow2"), backing_format="qcow2"
    )
    assert (await image_info(qemu_img=QEMU_IMG, image=Path("fat:o,b.qcow2"))).backing == odd


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
async def test_a_blank_image_takes_no_space(tmp_path: Path, image_format: str) -> None:
    await create_blank(qemu_img=QEMU_IMG, image=tmp_path / "blank", size_bytes=64 * MIB, image_format=image_format)
    info = await image_info(qemu_img=QEMU_IMG, image=tmp_path / "blank", image_format=image_format)
    assert (info.format, info.virtual_size_bytes, info.backing) == (image_format, 64 * MIB, None)
    assert info.allocated_bytes < MIB


async def test_a_missing_backing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=f"{tmp_path}/none"):
        await overlay_on(tmp_path / "none")
    with pytest.raises(ArtifactMissing, match=f"{tmp_path}/none"):
        await image_info(qemu_img=QEMU_IMG, image=tmp_path / "none")


async def test_an_image_missing_further_down_is_named(base: Path) -> None:
    middle = await overlay_on(base, name="middle.qcow2")
    base.unlink()
    with pytest.raises(ArtifactMissing, match=f"(?s){middle} is an overlay on is missing.*{base}"):
        await overlay_on(middle)
    assert not middle.with_name("overlay.qcow2").exists()


async def test_a_backing_image_that_is_no_image_is_named_with_what_qemu_says(base: Path) -> None:
    base.write_bytes(os.urandom(MIB))
    with pytest.raises(ArtifactCorrupt, match=f"(?s){base} is broken.*not in qcow2 format") as caught:
        await overlay_on(base)
    assert caught.value.hint
    assert not base.with_name("overlay.qcow2").exists()
    with pytest.raises(ArtifactCorrupt, match=f"{base} is broken"):
        await image_info(qemu_img=QEMU_IMG, image=base, image_format="qcow2")


async def test_an_image_that_was_cut_short_is_found_by_a_check(base: Path) -> None:
    await check_image(qemu_img=QEMU_IMG, image=base, image_format="qcow2")
    os.truncate(base, base.stat().st_size // 2)
    with pytest.raises(ArtifactCorrupt, match=f"{base} is broken"):
        await check_image(qemu_img=QEMU_IMG, image=base, image_format="qcow2")


async def test_a_raw_image_passes_the_check(base: Path) -> None:
    await check_image(qemu_img=QEMU_IMG, image=base.with_name("raw"), image_format="raw")


async def test_an_existing_file_is_not_overwritten(base: Path) -> None:
    taken = base.with_name("overlay.qcow2")
    taken.write_text("precious")
    with pytest.raises(ArtifactError, match=f"{taken} exists"):
        await overlay_on(base)
    assert taken.read_text() == "precious"


async def test_a_missing_directory_is_named(base: Path) -> None:
    with pytest.raises(ArtifactError, match="its directory is missing"):
        await overlay_on(base, name="none/overlay.qcow2")


async def test_an_unknown_format_is_not_taken_for_a_broken_image(base: Path) -> None:
    with pytest.raises(ArtifactError, match="Unknown driver 'cow5'") as caught:
        await create_overlay(qemu_img=QEMU_IMG, backing=base, overlay=base.with_name("overlay"), backing_format="cow5")
    assert not isinstance(caught.value, ArtifactCorrupt)


async def test_a_missing_qemu_img_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CapabilityMissing, match="qemu-utils"):
        await create_blank(qemu_img=tmp_path / "qemu-img", image=tmp_path / "blank", size_bytes=MIB)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 KiB."""
    with mounted(tmp_path / "full", *tmpfs("size=4k")) as place:
        yield place


@as_root
async def test_no_space_is_an_error_of_its_own_and_leaves_nothing(base: Path, full: Path) -> None:
    with pytest.raises(ResourceExhausted, match=f"(?s)no space left.*{full}"):
        await create_overlay(qemu_img=QEMU_IMG, backing=base, overlay=full / "overlay", backing_format="qcow2")
    assert list(full.iterdir()) == []


async def test_a_cancelled_call_ends_the_program_and_leaves_nothing(tmp_path: Path) -> None:
    slow, image = tmp_path / "slow-img", tmp_path / "blank"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho half > {image}\nexec sleep 60\n")
    slow.chmod(0o755)
    task = asyncio.create_task(create_blank(qemu_img=slow, image=image, size_bytes=MIB))
    while not image.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not image.exists()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
