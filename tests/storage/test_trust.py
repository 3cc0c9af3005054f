"""A store that another user could have written to is not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_propolis.errors import HostError
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.sources import LocalFile
from pytest_propolis.storage.store import ArtifactStore

STRANGER = 54321


def silent(_text: str) -> None:
    """No progress."""


async def make(place: Path) -> None:
    (place / "file").write_bytes(b"content")


def derived(store: Path) -> Path:
    return store / "derived" / "key"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("where", [lambda store: store, lambda store: store / "derived", derived])
async def test_a_place_of_another_user_is_refused(tmp_path: Path, where: object) -> None:
    assert callable(where)
    store = ArtifactStore(tmp_path / "store")
    await store.derive("key", ["file"], make, silent)
    os.chown(where(tmp_path / "store"), STRANGER, STRANGER)
    with pytest.raises(HostError, match=f"it belongs to another user .uid {STRANGER}."):
        await store.derive("key", ["file"], make, silent)
    with pytest.raises(HostError, match="it belongs to another user"):
        store.derived("key", ["file"])


@pytest.mark.parametrize(
    ("mode", "gid", "reason"), [(0o777, None, "every user"), (0o770, STRANGER, "a group of users")]
)
async def test_a_place_that_others_can_write_to_is_refused(
    tmp_path: Path, mode: int, gid: int | None, reason: str
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "store").mkdir()
    if gid is not None:
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(tmp_path / "store", -1, gid)
    (tmp_path / "store").chmod(mode)
    artifact = Artifact("mine", "mine", None, LocalFile(str(tmp_path / "file")))
    with pytest.raises(HostError, match=f"{tmp_path}/store cannot be used: {reason} can write to it"):
        await ArtifactStore(tmp_path / "store").get(artifact, silent)


async def test_a_group_of_ones_own_may_write(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o770)
    assert (await ArtifactStore(tmp_path / "store").derive("key", ["file"], make, silent)).is_dir()
