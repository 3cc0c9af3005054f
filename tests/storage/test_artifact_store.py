"""The artifact store: content addressed, shared by processes, never half-made."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest
from mounts import as_root, mounted, tmpfs
from wheel_builder import DISTRIBUTION, VERSION, build_wheel, use_only

from pytest_propolis.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing, HostError, ResourceExhausted
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.sources import LocalFile, WheelMember
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

DISK = b"disk" * 200_000


def in_wheel(member: str, content: bytes) -> Artifact:
    source = WheelMember(DISTRIBUTION, VERSION, member)
    return Artifact(f"test-{member}", member, hashlib.sha256(content).hexdigest(), source)


def silent(_: str) -> None:
    """Ignore progress."""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    use_only(tmp_path / "wheels", monkeypatch)
    build_wheel(tmp_path / "wheels", {"disk": DISK})
    return in_wheel("disk", DISK)


def files_in(directory: Path) -> set[str]:
    """Return the files, except locks."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(directory)) for path in paths}


async def test_an_artifact_is_fetched_once_and_is_read_only(store: ArtifactStore, disk: Artifact) -> None:
    said: list[str] = []
    path = await store.get(disk, said.append)
    assert path == store.directory / str(disk.sha256) / "disk"
    assert path.read_bytes() == DISK
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert said
    said.clear()
    assert await store.get(disk, said.append) == path
    assert said == []
    assert files_in(store.directory) == {f"{disk.sha256}/disk", f"{disk.sha256}/.verified.json"}


async def test_a_touched_file_is_hashed_again_and_kept(store: ArtifactStore, disk: Artifact) -> None:
    path = await store.get(disk, silent)
    os.utime(path, ns=(1, 1))
    said: list[str] = []
    await store.get(disk, said.append)
    assert said == [f"checking {path}"]
    said.clear()
    await store.get(disk, said.append)
    assert said == []


@pytest.mark.parametrize("damage", [b"", DISK[:-1], b"x" * len(DISK)], ids=["emptied", "cut", "overwritten"])
async def test_a_damaged_file_is_fetched_anew(store: ArtifactStore, disk: Artifact, damage: bytes) -> None:
    path = await store.get(disk, silent)
    path.chmod(0o644)
    path.write_bytes(damage)
    said: list[str] = []
    assert (await store.get(disk, said.append)).read_bytes() == DISK
    assert f"{path} is damaged: fetching it again" in said


async def test_a_source_that_gives_something_else_is_asked_twice_and_named(
    store: ArtifactStore, disk: Artifact
) -> None:
    wrong = Artifact("wrong", "disk", "0" * 64, disk.source)
    said: list[str] = []
    with pytest.raises(ArtifactCorrupt, match=f"wrong, from disk in the wheel of {DISTRIBUTION} {VERSION}.*0000"):
        await store.get(wrong, said.append)
    assert sum(line.startswith("downloading") for line in said) == 2
    assert files_in(store.directory) == set()
    assert not (store.directory / ("0" * 64)).exists()


async def test_a_source_that_cannot_be_reached_leaves_nothing(
    store: ArtifactStore, disk: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_only(tmp_path / "empty", monkeypatch)
    with pytest.raises(ArtifactMissing, match="pip could not download"):
        await store.get(disk, silent)
    assert files_in(store.directory) == set()


async def test_a_get_cancelled_anywhere_leaves_only_complete_things(store: ArtifactStore, disk: Artifact) -> None:
    for step in ("downloading", "unpacking"):
        reached = asyncio.Event()

        def hear(line: str, step: str = step, reached: asyncio.Event = reached) -> None:
            if line.startswith(step):
                reached.set()

        task = asyncio.create_task(store.get(disk, hear))
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert files_in(store.directory) == set()
    assert (await store.get(disk, silent)).read_bytes() == DISK


async def test_what_a_killed_fetch_left_is_removed(store: ArtifactStore, disk: Artifact) -> None:
    home = store.directory / str(disk.sha256)
    home.mkdir(parents=True)
    (home / ".disk.dead").write_bytes(b"half")
    await store.get(disk, silent)
    assert files_in(home) == {"disk", ".verified.json"}


GET = """
import asyncio, pathlib, sys, msgspec
from pytest_propolis.storage.artifacts import Artifact
from pytest_propolis.storage.store import ArtifactStore
artifact = msgspec.json.decode(sys.argv[2], type=Artifact)
print(asyncio.run(ArtifactStore(pathlib.Path(sys.argv[1])).get(artifact, print)))
"""


async def test_processes_that_race_download_once(store: ArtifactStore, disk: Artifact) -> None:
    argv = [sys.executable, "-c", GET, str(store.directory), msgspec.json.encode(disk).decode()]
    racers = [await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE) for _ in range(4)]
    outputs = [(await racer.communicate())[0].decode().splitlines() for racer in racers]
    assert {lines[-1] for lines in outputs} == {str(store.directory / str(disk.sha256) / "disk")}
    assert sum(line.startswith("downloading") for lines in outputs for line in lines) == 1


async def test_a_local_file_is_used_in_place(store: ArtifactStore, tmp_path: Path) -> None:
    local = tmp_path / "mine"
    local.write_bytes(DISK)
    artifact = Artifact("mine", "mine", hashlib.sha256(DISK).hexdigest(), LocalFile(str(local)))
    said: list[str] = []
    assert await store.get(artifact, said.append) == local
    assert await store.get(artifact, said.append) == local
    assert said == [f"checking {local}"]


async def test_a_local_file_without_a_hash_is_taken_as_it_is(store: ArtifactStore, tmp_path: Path) -> None:
    local = tmp_path / "mine"
    local.write_bytes(DISK)
    assert await store.get(Artifact("mine", "mine", None, LocalFile(str(local))), silent) == local
    assert not store.directory.exists()


async def test_a_local_file_with_other_content_is_named_and_kept(store: ArtifactStore, tmp_path: Path) -> None:
    local = tmp_path / "mine"
    local.write_bytes(b"other")
    with pytest.raises(ArtifactCorrupt, match=f"from local file {local}"):
        await store.get(Artifact("mine", "mine", "0" * 64, LocalFile(str(local))), silent)
    assert local.read_bytes() == b"other"


async def test_a_local_file_that_is_not_there_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=f"{tmp_path}/none is not a readable file"):
        await store.get(Artifact("mine", "mine", None, LocalFile(str(tmp_path / "none"))), silent)


async def test_content_from_elsewhere_needs_a_hash(store: ArtifactStore, disk: Artifact) -> None:
    with pytest.raises(ArtifactError, match="has no sha256"):
        await store.get(Artifact("disk", "disk", None, disk.source), silent)


async def test_a_store_that_is_a_file_is_named(tmp_path: Path, disk: Artifact) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=f"artifact directory {tmp_path}/file cannot be used") as caught:
        await ArtifactStore(tmp_path / "file").get(disk, silent)
    assert "--propolis-artifact-dir" in (caught.value.hint or "")


def test_the_default_directory_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_artifact_dir() == tmp_path / "propolis" / "artifacts"
    assert list(tmp_path.iterdir()) == []


class Maker:
    """Makes two files, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, directory: Path) -> None:
        self.count += 1
        (directory / "a").write_bytes(b"a" * 1000)
        (directory / "b").write_bytes(b"b" * 1000)
        (directory / "scratch").write_bytes(b"not wanted")


async def test_what_is_derived_is_made_once(store: ArtifactStore) -> None:
    make, said = Maker(), list[str]()
    place = await store.derive("key-1", ["a", "b"], make, said.append)
    assert place == store.directory / "derived" / "key-1"
    assert files_in(place) == {"a", "b", "manifest.json"}
    assert stat.S_IMODE((place / "a").stat().st_mode) == 0o444
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    entry = json.loads((place / "manifest.json").read_bytes())["a"]
    assert (entry["sha256"], entry["size"]) == (hashlib.sha256(b"a" * 1000).hexdigest(), 1000)
    said.clear()
    assert await store.derive("key-1", ["a", "b"], make, said.append) == place
    assert (make.count, said) == (1, [])


async def test_derived_files_that_were_touched_are_checked_and_kept(store: ArtifactStore) -> None:
    make = Maker()
    place = await store.derive("key", ["a", "b"], make, silent)
    os.utime(place / "a", ns=(1, 1))
    await store.derive("key", ["a", "b"], make, silent)
    assert make.count == 1


@pytest.mark.parametrize("victim", ["a", "manifest.json"])
async def test_derived_files_that_are_damaged_are_made_again(store: ArtifactStore, victim: str) -> None:
    make = Maker()
    place = await store.derive("key", ["a", "b"], make, silent)
    (place / victim).chmod(0o644)
    (place / victim).write_bytes(b"damaged")
    assert await store.derive("key", ["a", "b"], make, silent) == place
    assert make.count == 2
    assert (place / "a").read_bytes() == b"a" * 1000
    assert [path.name for path in place.parent.iterdir()] == ["key"]


async def test_tasks_that_race_make_once_and_the_second_says_that_it_waits(store: ArtifactStore) -> None:
    second_waits = asyncio.Event()
    make = Maker()

    async def make_slowly(directory: Path) -> None:
        await make(directory)
        await second_waits.wait()

    first = asyncio.create_task(store.derive("key", ["a"], make_slowly, silent))
    while make.count == 0:
        await asyncio.sleep(0)
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        second_waits.set()

    assert await store.derive("key", ["a"], make, hear) == await first
    assert said == ["another task is making key already: waiting for it"]
    assert make.count == 1


async def test_a_maker_that_fails_leaves_nothing(store: ArtifactStore) -> None:
    async def fail(directory: Path) -> None:
        (directory / "a").write_bytes(b"half")
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await store.derive("key", ["a"], fail, silent)
    assert files_in(store.directory) == set()


async def test_a_maker_that_forgets_a_file_is_named(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="derived key: c was not made"):
        await store.derive("key", ["a", "c"], Maker(), silent)
    assert files_in(store.directory) == set()


async def test_a_maker_that_is_cancelled_leaves_nothing(store: ArtifactStore) -> None:
    started = asyncio.Event()

    async def hang(directory: Path) -> None:
        (directory / "a").write_bytes(b"half")
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.derive("key", ["a"], hang, silent))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_in(store.directory) == set()


HANG = """
import asyncio, pathlib, sys
from pytest_propolis.storage.store import ArtifactStore
async def make(directory):
    (directory / "a").write_bytes(b"half")
    print("half-made", flush=True)
    await asyncio.Event().wait()
asyncio.run(ArtifactStore(pathlib.Path(sys.argv[1])).derive("key", ["a"], make, lambda line: None))
"""


async def test_what_a_killed_maker_left_is_removed_and_made(store: ArtifactStore) -> None:
    maker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HANG, str(store.directory), stdout=subprocess.PIPE
    )
    assert maker.stdout is not None
    assert await maker.stdout.readline() == b"half-made\n"
    maker.send_signal(SIGKILL)
    await maker.wait()
    assert files_in(store.directory) != set()
    place = await store.derive("key", ["a"], Maker(), silent)
    assert [path.name for path in place.parent.iterdir()] == ["key"]


async def test_a_key_cannot_leave_the_store(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="cannot name a file"):
        await store.derive("../key", ["a"], Maker(), silent)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[ArtifactStore]:
    """A store on a file system of 256 KiB."""
    with mounted(tmp_path / "small", *tmpfs("size=256k")) as place:
        yield ArtifactStore(place / "artifacts")


@as_root
@pytest.mark.parametrize(
    "content", [os.urandom(1 << 20), bytes(1 << 20)], ids=["in the download", "in what is unpacked"]
)
async def test_no_space_for_an_artifact_names_the_directory_and_leaves_nothing(
    small: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    use_only(tmp_path / "wheels", monkeypatch)
    build_wheel(tmp_path / "wheels", {"disk": content})
    with pytest.raises(ResourceExhausted, match=f"no space left in {small.directory}") as caught:
        await small.get(in_wheel("disk", content), silent)
    assert "--propolis-artifact-dir" in (caught.value.hint or "")
    assert files_in(small.directory) == set()


@as_root
async def test_no_space_for_what_is_derived_names_the_directory_and_leaves_nothing(small: ArtifactStore) -> None:
    async def make(directory: Path) -> None:
        (directory / "a").write_bytes(bytes(1 << 20))

    with pytest.raises(ResourceExhausted, match=f"no space left in {small.directory}"):
        await small.derive("key", ["a"], make, silent)
    assert files_in(small.directory) == set()
