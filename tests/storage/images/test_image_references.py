"""An image names files beside it, or in directories that the user allows, and no other ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from qcow2_images import qemu_img, with_backing_file, with_data_file

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError
from pytest_propolis.storage.images.image_headers import Qcow2Header, container_of
from pytest_propolis.storage.images.image_references import require_contained

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(b"TOPSECRET".ljust(1 << 20, b"\0"))
    return secret


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.mark.parametrize("make", [with_data_file, with_backing_file])
def test_a_file_elsewhere_is_refused_unless_its_directory_is_allowed(make: object, images: Path, secret: Path) -> None:
    assert callable(make)
    image = make(images / "downloaded.qcow2", secret)
    with pytest.raises(ArtifactError, match=f"{image} names {secret}") as refused:
        require_contained(image, "qcow2")
    assert "--propolis-image-dirs" in str(refused.value)
    require_contained(image, "qcow2", allowed=[secret.parent])


def test_a_file_beside_the_image_is_fine(images: Path) -> None:
    (images / "base").write_bytes(bytes(1 << 20))
    require_contained(with_backing_file(images / "by-name.qcow2", "base"), "qcow2")
    require_contained(with_backing_file(images / "by-path.qcow2", images / "base"), "qcow2")
    require_contained(with_data_file(images / "data.qcow2", images / "base"), "qcow2")


def test_what_a_backing_file_names_counts_too(images: Path, secret: Path) -> None:
    middle = with_backing_file(images / "middle.qcow2", secret)
    image = with_backing_file(images / "top.qcow2", middle.name, backing_format="qcow2")
    with pytest.raises(ArtifactError, match=f"{middle} names {secret}"):
        require_contained(image, "qcow2")


def test_a_link_does_not_lead_out_of_the_directory(images: Path, secret: Path) -> None:
    (images / "base").symlink_to(secret)
    with pytest.raises(ArtifactError, match=f"names {secret}"):
        require_contained(with_backing_file(images / "image.qcow2", "base"), "qcow2")
    with pytest.raises(ArtifactError, match=f"names {secret}"):
        require_contained(with_backing_file(images / "other.qcow2", "../elsewhere/secret"), "qcow2")


def test_an_image_behind_a_link_has_the_files_beside_itself(images: Path, tmp_path: Path) -> None:
    (images / "base").write_bytes(bytes(1 << 20))
    image = with_backing_file(images / "image.qcow2", images / "base")
    (tmp_path / "link.qcow2").symlink_to(image)
    require_contained(tmp_path / "link.qcow2", "qcow2")


@pytest.mark.parametrize(
    "name", ["nbd://127.0.0.1:1/x", "fat:/etc", "json:{}", "ssh://host/file", "http://127.0.0.1:1/x", "file:base"]
)
def test_an_address_is_no_file_beside_the_image(images: Path, name: str) -> None:
    image = with_backing_file(images / "image.qcow2", name)
    with pytest.raises(ArtifactError, match="which is outside of its directory"):
        require_contained(image, "qcow2")


def test_a_loop_of_backing_files_ends(images: Path) -> None:
    image = with_backing_file(images / "image.qcow2", "image.qcow2", backing_format="qcow2")
    with pytest.raises(ArtifactError, match="more than 64 backing files"):
        require_contained(image, "qcow2")


def test_a_raw_image_names_nothing(images: Path, secret: Path) -> None:
    require_contained(with_backing_file(images / "image.qcow2", secret), "raw")


@pytest.mark.parametrize("offset", [8, 16, 100, 116])
def test_a_header_that_makes_no_sense_is_broken(images: Path, secret: Path, offset: int) -> None:
    image = with_backing_file(images / "image.qcow2", secret)
    content = bytearray(image.read_bytes())
    content[offset : offset + 4] = b"\xff" * 4
    image.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=f"{image} is broken"):
        Qcow2Header.read(image)


def test_any_prefix_of_an_image_is_read_or_called_broken(images: Path, secret: Path) -> None:
    image = with_data_file(images / "image.qcow2", secret)
    for length in range(4, 600, 7):
        os.truncate(shutil.copy(image, images / "cut"), length)
        try:
            header = Qcow2Header.read(images / "cut")
        except ArtifactCorrupt:
            continue
        assert header is not None


@pytest.mark.parametrize("name", ["qcow2", "vmdk", "vhdx", "vpc", "qed", "parallels", "vdi"])
def test_the_containers_that_qemu_img_makes_are_known(tmp_path: Path, name: str) -> None:
    try:
        qemu_img("create", "-f", name, tmp_path / "image", "4M")
    except subprocess.CalledProcessError:
        pytest.skip(f"this qemu-img cannot make {name}")
    assert container_of((tmp_path / "image").read_bytes()[:512]) == name


@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd"])
def test_compressed_images_are_known(tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (tmp_path / "disk").write_bytes(bytes(4096))
    packed = subprocess.run([program, "-c", tmp_path / "disk"], check=True, capture_output=True).stdout
    assert container_of(packed) == program


@pytest.mark.parametrize("head", [b"", b"Q", bytes(512), b"\xeb\x63\x90".ljust(510, b"\0") + b"\x55\xaa"])
def test_a_disk_is_no_container(head: bytes) -> None:
    assert container_of(head) is None
