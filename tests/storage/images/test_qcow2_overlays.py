"""Overlays that are written without ``qemu-img``, against those that it makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pytest_propolis.errors import ArtifactCorrupt, CapabilityMissing
from pytest_propolis.storage.images.overlays import check_image, create_overlay
from pytest_propolis.storage.images.qcow2_overlay import write_overlay

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
NOWHERE = Path("/nowhere/qemu-img")

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*arguments: str | Path) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


def image(directory: Path, image_format: str, size_bytes: int) -> Path:
    path = directory / f"image.{image_format}"
    if image_format == "qcow2":
        qemu_img("create", "-q", "-f", "qcow2", path, str(size_bytes))
    else:
        path.touch()
        os.truncate(path, size_bytes)
    return path


def description(path: Path) -> dict[str, Any]:
    """Return all that ``qemu-img`` says of an image, but what differs between two files."""
    described: dict[str, Any] = json.loads(qemu_img("info", "--output=json", path))
    return {key: value for key, value in described.items() if key not in ("filename", "actual-size")}


@pytest.mark.parametrize("size_bytes", [None, 40 * GIB])
@pytest.mark.parametrize(
    ("image_format", "image_bytes"),
    [("raw", 1000), ("raw", MIB), ("raw", 30 * GIB), ("raw", 4 * TIB), ("qcow2", MIB), ("qcow2", 30 * GIB)],
)
def test_an_overlay_is_as_qemu_img_makes_it(
    tmp_path: Path, image_format: str, image_bytes: int, size_bytes: int | None
) -> None:
    backing, ours, theirs = image(tmp_path, image_format, image_bytes), tmp_path / "ours", tmp_path / "theirs"
    assert write_overlay(backing=backing, overlay=ours, backing_format=image_format, size_bytes=size_bytes)
    size = [] if size_bytes is None else [str(size_bytes)]
    qemu_img("create", "-q", "-f", "qcow2", "-F", image_format, "-b", backing, theirs, *size)
    assert description(ours) == description(theirs)
    assert ours.stat().st_size == theirs.stat().st_size
    assert "No errors were found" in qemu_img("check", ours)


def test_an_overlay_receives_writes_and_has_snapshots(tmp_path: Path) -> None:
    backing, overlay = tmp_path / "image.raw", tmp_path / "overlay"
    backing.write_bytes(b"original" * 512 * 1024)
    assert write_overlay(backing=backing, overlay=overlay, backing_format="raw", size_bytes=None)
    subprocess.run(["qemu-io", "-c", "write -q -P 7 1M 1M", "-f", "qcow2", overlay], check=True)
    qemu_img("snapshot", "-c", "first", overlay)
    subprocess.run(["qemu-io", "-c", "write -q -P 8 1M 1M", "-f", "qcow2", overlay], check=True)
    qemu_img("snapshot", "-a", "first", overlay)
    assert "No errors were found" in qemu_img("check", overlay)
    qemu_img("convert", "-O", "raw", overlay, tmp_path / "flat")
    contents = backing.read_bytes()
    assert (tmp_path / "flat").read_bytes() == contents[:MIB] + b"\7" * MIB + contents[2 * MIB :]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_no_program_is_started_for_an_image_of_usual_kind(tmp_path: Path, image_format: str) -> None:
    backing, overlay = image(tmp_path, image_format, GIB), tmp_path / "overlay"
    await create_overlay(qemu_img=NOWHERE, backing=backing, overlay=overlay, backing_format=image_format)
    assert description(overlay)["virtual-size"] == GIB


@pytest.mark.parametrize("kind", ["overlay", "encrypted", "external data", "truncated", "empty", "no file"])
def test_other_images_are_left_to_qemu_img(tmp_path: Path, kind: str) -> None:
    backing, overlay, image_format = image(tmp_path, "qcow2", MIB), tmp_path / "overlay", "qcow2"
    match kind:
        case "overlay":
            base, backing = backing, tmp_path / "middle"
            qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, backing)
        case "encrypted":
            # Not LUKS: for that QEMU measures the machine, which fails on some.
            secret, options = "secret,id=s,data=x", "encrypt.format=aes,encrypt.key-secret=s"
            qemu_img("create", "-q", "-f", "qcow2", "--object", secret, "-o", options, backing, "1M")
        case "external data":
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", backing, "1M")
        case "truncated":
            os.truncate(backing, 1 << 16)
        case "empty":
            backing, image_format = image(tmp_path, "raw", 0), "raw"
        case "no file":
            backing = tmp_path
    assert not write_overlay(backing=backing, overlay=overlay, backing_format=image_format, size_bytes=None)
    assert not overlay.exists()


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    backing, overlay = image(tmp_path, "raw", MIB), tmp_path / "overlay"
    overlay.write_text("mine")
    assert not write_overlay(backing=backing, overlay=overlay, backing_format="raw", size_bytes=None)
    assert overlay.read_text() == "mine"


async def test_an_image_is_checked_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = image(tmp_path, "qcow2", MIB)
    await check_image(qemu_img=Path("qemu-img"), image=path, image_format="qcow2")
    await check_image(qemu_img=NOWHERE, image=path, image_format="qcow2")
    with path.open("r+b") as file:
        file.seek(3 << 16)  # its level 1 table
        file.write(b"\x80\0\0\0\x7f\0\0\0")
    with pytest.raises(CapabilityMissing):
        await check_image(qemu_img=NOWHERE, image=path, image_format="qcow2")
    with pytest.raises(ArtifactCorrupt):
        await check_image(qemu_img=Path("qemu-img"), image=path, image_format="qcow2")
