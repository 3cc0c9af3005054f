"""Eviction of derived files that are old, exceed the limit, or are incomplete."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pytest_propolis.ledger.disk_directories import abandoned
from pytest_propolis.storage.eviction import Claim, evict, note_use
from pytest_propolis.storage.locks import locked
from pytest_propolis.storage.store import ArtifactStore

DAY_S = 86400.0


async def derived(directory: Path, key: str, *, age_s: float = 0.0, size_bytes: int = 8192) -> Path:
    async def make(place: Path) -> None:
        (place / "file").write_bytes(b"x" * size_bytes)

    place = await ArtifactStore(directory).derive(key, ["file"], make, lambda text: None)
    then = time.time() - age_s
    os.utime(place / "manifest.json", (then, then))
    return place


async def test_what_was_not_used_for_long_goes(tmp_path: Path) -> None:
    old, new = await derived(tmp_path, "old", age_s=3 * DAY_S), await derived(tmp_path, "new", age_s=DAY_S)
    assert [one.path for one in evict(tmp_path, max_age_s=2 * DAY_S, max_bytes=1 << 30)] == [old]
    assert new.is_dir()
    assert not old.exists()


async def test_use_keeps_it_young_and_intact(tmp_path: Path) -> None:
    place = await derived(tmp_path, "old", age_s=3 * DAY_S)
    note_use(place)
    assert evict(tmp_path, max_age_s=2 * DAY_S, max_bytes=1 << 30) == []
    made: list[Path] = []

    async def make(directory: Path) -> None:
        made.append(directory)

    await ArtifactStore(tmp_path).derive("old", ["file"], make, lambda text: None)
    assert made == []


async def test_of_too_much_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    places = [await derived(tmp_path, f"k{age}", age_s=age * DAY_S, size_bytes=1 << 20) for age in range(3)]
    evicted = evict(tmp_path, max_age_s=9 * DAY_S, max_bytes=5 << 19)
    assert [one.path for one in evicted] == [places[2]]
    assert evicted[0].size_bytes >= 1 << 20


async def test_what_a_killed_maker_left_goes_but_not_what_is_being_made(tmp_path: Path) -> None:
    await derived(tmp_path, "any")
    for key in ("killed", "busy"):
        (tmp_path / "derived" / f".{key}.abc" / "made").mkdir(parents=True)
    async with locked(tmp_path / "locks" / "derived-busy.lock", purpose="making", progress=lambda text: None):
        evicted = evict(tmp_path, max_age_s=DAY_S, max_bytes=1 << 30)
    assert [one.path.name for one in evicted] == [".killed.abc"]
    assert (tmp_path / "derived" / ".busy.abc").is_dir()


async def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    place = await derived(tmp_path, "any")
    assert [one.path for one in evict(tmp_path, max_age_s=-1, max_bytes=0, dry_run=True)] == [place]
    assert place.is_dir()


def test_a_directory_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert evict(tmp_path / "none", max_age_s=0, max_bytes=0) == []


@pytest.mark.parametrize("name", ["manifest.json", "file"])
async def test_what_lost_a_file_is_made_anew(tmp_path: Path, name: str) -> None:
    place = await derived(tmp_path, "any")
    (place / name).unlink()
    assert (await derived(tmp_path, "any") / "file").is_file()


async def test_what_is_claimed_stays(tmp_path: Path) -> None:
    place = await derived(tmp_path, "used", age_s=3 * DAY_S)
    claims = [Claim(tmp_path, "used"), Claim(tmp_path, "used")]
    claims[0].close()
    assert evict(tmp_path, max_age_s=DAY_S, max_bytes=0) == []
    assert place.is_dir()
    claims[1].close()
    assert [one.path for one in evict(tmp_path, max_age_s=DAY_S, max_bytes=0)] == [place]


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_what_a_disk_is_an_overlay_on_stays(tmp_path: Path) -> None:
    used, unused = await derived(tmp_path, "used", age_s=3 * DAY_S), await derived(tmp_path, "unused", age_s=3 * DAY_S)
    disk = tmp_path / "disks" / "run-1" / "fork" / "disk-0.qcow2"
    disk.parent.mkdir(parents=True)
    create: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-F",
        "raw",
        "-b",
        used / "file",
        disk,
        "1M",
    ]
    subprocess.run(create, check=True)
    evicted = evict(tmp_path, max_age_s=DAY_S, max_bytes=0, disks=tmp_path / "disks")
    assert [one.path for one in evicted] == [unused]
    assert used.is_dir()


def test_directories_that_vanish_while_they_are_searched_are_no_error(tmp_path: Path) -> None:
    """Disks of other runs, which end meanwhile."""
    disks, ended = tmp_path / "disks", threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(50):
                (disks / f"run-{number}/vm/disk").mkdir(parents=True)
            shutil.rmtree(disks)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(100):
            assert evict(tmp_path, max_age_s=DAY_S, max_bytes=1 << 30, disks=disks) == []
            assert list(abandoned(disks)) == []
    finally:
        ended.set()
        other.join()
