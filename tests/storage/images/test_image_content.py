"""Digests of images by what they contain, and overlays that are put on another file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from qcow2_images import qemu_img

from pytest_propolis.errors import ArtifactMissing
from pytest_propolis.storage.images.image_content import content_digest
from pytest_propolis.storage.images.overlays import create_overlay, image_info, put_overlay_on

MIB = 1 << 20
QEMU_IMG = Path(shutil.which("qemu-img") or "qemu-img")

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    raw, base = tmp_path / "raw", tmp_path / "here" / "base.qcow2"
    base.parent.mkdir()
    raw.write_bytes(os.urandom(MIB) + bytes(7 * MIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, base)
    return base


@pytest.fixture
async def overlay(base: Path) -> Path:
    overlay = base.with_name("overlay.qcow2")
    await create_overlay(qemu_img=QEMU_IMG, backing=base, overlay=overlay, backing_format="qcow2")
    write(overlay, 7)
    return overlay


def write(image: Path, pattern: int) -> None:
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 2M 64k", str(image)]
    subprocess.run(command, check=True, capture_output=True)


async def moved(base: Path, overlay: Path, directory: Path) -> tuple[Path, Path]:
    """Copy both to another host, so to speak, and put them together there."""
    directory.mkdir(parents=True)
    other_base, other = (Path(shutil.copy(path, directory)) for path in (base, overlay))
    base.rename(base.with_name("gone"))
    await put_overlay_on(qemu_img=QEMU_IMG, backing=other_base, overlay=other, backing_format="qcow2")
    base.with_name("gone").rename(base)
    return other_base, other


async def test_an_overlay_that_was_put_on_a_copy_of_its_backing_file_has_the_same_content(
    base: Path, overlay: Path, tmp_path: Path
) -> None:
    other_base, other = await moved(base, overlay, tmp_path / ("far" * 40) / "away")
    assert (await image_info(qemu_img=QEMU_IMG, image=other)).backing == other_base
    assert subprocess.run([QEMU_IMG, "compare", "-q", overlay, other], check=False).returncode == 0
    assert other.read_bytes() != overlay.read_bytes()
    assert content_digest(other) == content_digest(overlay)


@pytest.mark.parametrize("changed", ["overlay", "backing file"])
async def test_other_data_is_other_content(base: Path, overlay: Path, tmp_path: Path, changed: str) -> None:
    other_base, other = await moved(base, overlay, tmp_path / "there")
    write(other if changed == "overlay" else other_base, 8)
    assert content_digest(other) != content_digest(overlay)


def test_a_file_that_is_no_overlay_is_read_as_it_is(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(base, tmp_path / "copy.qcow2"))
    assert content_digest(copy) == content_digest(base)
    write(copy, 9)
    assert content_digest(copy) != content_digest(base)


async def test_an_overlay_is_not_put_on_a_missing_file(overlay: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="none"):
        await put_overlay_on(qemu_img=QEMU_IMG, backing=tmp_path / "none", overlay=overlay, backing_format="qcow2")
