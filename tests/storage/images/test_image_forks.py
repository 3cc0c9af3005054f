"""Forks of images, by every provider that this machine has."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import as_root, mounted, tmpfs

from pytest_propolis.errors import ArtifactError, ArtifactMissing, CapabilityMissing, ConfigError, ResourceExhausted
from pytest_propolis.storage.forks.choice import fork_image, provider_named
from pytest_propolis.storage.forks.fork import ForkedImage, ForkRequest

DATA = os.urandom(1 << 16)
SIZE = 64 << 20
HOLE = 16 << 20


MAKERS = {"btrfs": ("mkfs.btrfs", "-q"), "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1")}


@contextlib.contextmanager
def reflink_file_system(kind: str, directory: Path) -> Iterator[Path]:
    """A directory on a file system that shares extents; where there can be none, the test is skipped."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    command = MAKERS[kind]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install btrfs-progs xfsprogs")
    device = directory / f"{kind}.device"
    with device.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([*command, str(device)], check=True, capture_output=True)
    with mounted(directory / kind, "mount", "-o", "loop", str(device)) as place:
        yield place


@pytest.fixture(params=["btrfs", "xfs"])
def reflinks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with reflink_file_system(request.param, tmp_path) as place:
        yield place


@pytest.fixture(params=["copy", "qcow2", "reflink on btrfs", "reflink on xfs"])
def way(request: pytest.FixtureRequest) -> str:
    """A provider, and the file system that it needs."""
    return str(request.param)


@pytest.fixture
def provider(way: str) -> str:
    return way.split()[0]


@pytest.fixture
def place(way: str, tmp_path: Path) -> Iterator[Path]:
    """A directory where the provider can work."""
    if " on " not in way:
        yield tmp_path
        return
    with reflink_file_system(way.split()[-1], tmp_path) as directory:
        yield directory


def image_in(place: Path) -> Path:
    """A sparse raw image: data, a hole, data at the end, and a hole after that."""
    image = place / "image.raw"
    with image.open("wb") as file:
        file.write(DATA)
        file.seek(HOLE)
        file.write(DATA)
        file.truncate(SIZE)
    return image


async def forked(place: Path, provider: str, name: str = "fork") -> ForkedImage:
    image = place / "image.raw"
    if not image.exists():
        image_in(place)
    request = ForkRequest(image=image, image_format="raw", target=place / name)
    assert await provider_named(provider).obstacle(request) is None
    return await provider_named(provider).fork(request)


def content(fork: ForkedImage) -> bytes:
    """Return the contents of a fork as a guest would read them."""
    if fork.format == "raw":
        return fork.path.read_bytes()
    raw = fork.path.with_suffix(".flat")
    subprocess.run(["qemu-img", "convert", "-f", fork.format, "-O", "raw", fork.path, raw], check=True)
    return raw.read_bytes()


def write(fork: ForkedImage, data: bytes, offset: int) -> None:
    command = f"write -q -s /dev/stdin {offset} {len(data)}"
    subprocess.run(
        ["qemu-io", "-f", fork.format, "-c", command, str(fork.path)], input=data, check=True, capture_output=True
    )


async def test_a_fork_has_the_images_content_and_its_writes_stay_its_own(place: Path, provider: str) -> None:
    one, two = await forked(place, provider, "one"), await forked(place, provider, "two")
    original = (place / "image.raw").read_bytes()
    assert content(one) == original
    write(one, b"x" * 512, HOLE)
    assert content(one)[HOLE : HOLE + 512] == b"x" * 512
    assert content(two) == original
    assert (place / "image.raw").read_bytes() == original
    assert (one.provider, one.origin, one.dataset) == (provider, place / "image.raw", None)


async def test_a_fork_takes_no_space_for_holes(place: Path, provider: str) -> None:
    fork = await forked(place, provider)
    assert fork.path.stat().st_blocks * 512 < 1 << 20


async def test_a_rollback_gives_the_content_of_a_snapshot_and_forgets_later_ones(place: Path, provider: str) -> None:
    fork, ways = await forked(place, provider), provider_named(provider)
    write(fork, b"a" * 512, 0)
    await ways.snapshot(fork, "first")
    write(fork, b"b" * 512, 0)
    await ways.snapshot(fork, "second")
    await ways.rollback(fork, "first")
    assert content(fork)[:512] == b"a" * 512
    with pytest.raises(ConfigError, match="no snapshot 'second'"):
        await ways.rollback(fork, "second")
    await ways.rollback(fork, "first")
    await ways.snapshot(fork, "second")


async def test_snapshots_have_names_that_are_new_and_sound(place: Path, provider: str) -> None:
    fork, ways = await forked(place, provider), provider_named(provider)
    await ways.snapshot(fork, "one")
    with pytest.raises(ConfigError, match="has a snapshot 'one' already"):
        await ways.snapshot(fork, "one")
    for name in ("", "../x", "a b", "-x"):
        with pytest.raises(ConfigError, match="cannot name a snapshot"):
            await ways.snapshot(fork, name)
    with pytest.raises(ConfigError, match=r"no snapshot 'two'.*\n.*it has: one"):
        await ways.rollback(fork, "two")


async def test_a_removed_fork_leaves_nothing_and_removing_it_again_is_fine(place: Path, provider: str) -> None:
    fork, ways = await forked(place, provider), provider_named(provider)
    await ways.snapshot(fork, "one")
    await ways.remove(fork)
    await ways.remove(fork)
    assert [path.name for path in place.iterdir() if "fork" in path.name] == []


async def test_an_existing_file_is_not_overwritten(place: Path, provider: str) -> None:
    image_in(place)
    (place / "fork").write_text("mine")
    with pytest.raises(ArtifactError, match="exists"):
        await provider_named(provider).fork(
            ForkRequest(image=place / "image.raw", image_format="raw", target=place / "fork")
        )
    assert (place / "fork").read_text() == "mine"


async def test_a_missing_image_is_named(place: Path, provider: str) -> None:
    with pytest.raises(ArtifactMissing, match="gone"):
        await provider_named(provider).fork(
            ForkRequest(image=place / "gone", image_format="raw", target=place / "fork")
        )
    assert list(place.glob("*fork*")) == []


async def test_the_best_provider_that_can_is_chosen(reflinks: Path, tmp_path: Path) -> None:
    said: list[str] = []
    image = image_in(reflinks)
    fork = await fork_image(
        ForkRequest(image=image, image_format="raw", target=reflinks / "fork"), progress=said.append
    )
    assert fork.provider == "reflink"
    elsewhere = ForkRequest(image=image, image_format="raw", target=tmp_path / "fork")
    assert (await fork_image(elsewhere, progress=said.append)).provider == "qcow2"
    assert said == []


async def test_a_copy_is_announced_with_its_size(tmp_path: Path) -> None:
    said: list[str] = []
    request = ForkRequest(image=image_in(tmp_path), image_format="raw", target=tmp_path / "fork")
    assert (await fork_image(request, progress=said.append, only=["copy"])).provider == "copy"
    assert len(said) == 1
    assert "copying 0 MiB" in said[0]


async def test_where_no_provider_can_each_says_why(tmp_path: Path) -> None:
    request = ForkRequest(image=image_in(tmp_path), image_format="raw", target=tmp_path / "fork")
    with pytest.raises(CapabilityMissing, match=r"reflink: .* cannot share extents"):
        await fork_image(request, progress=print, only=["reflink"])
    with pytest.raises(ConfigError, match="no fork provider 'zsf'"):
        await fork_image(request, progress=print, only=["zsf"])
    assert list(tmp_path.glob("*fork*")) == []


@as_root
async def test_a_full_file_system_is_named_and_nothing_half_made_stays(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(os.urandom(8 << 20))
    with mounted(tmp_path / "full", *tmpfs("size=4m")) as full:
        request = ForkRequest(image=image, image_format="raw", target=full / "fork")
        with pytest.raises(ResourceExhausted, match=str(full)):
            await provider_named("copy").fork(request)
        assert list(full.iterdir()) == []
