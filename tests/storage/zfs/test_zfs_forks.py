"""Forks on ZFS: the commands, run against a small model of ``zfs``.

The model answers in the words of OpenZFS 2.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_propolis.errors import ArtifactError, CapabilityMissing, ConfigError, ResourceExhausted
from pytest_propolis.storage.forks import zfs
from pytest_propolis.storage.forks.fork import ForkedImage, ForkRequest
from pytest_propolis.storage.forks.zfs import ZfsProvider, remove_unused_snapshots
from pytest_propolis.storage.programs import Finished

IMAGE = Path("/tank/images/disk.raw")


@dataclasses.dataclass
class Pool:
    """A pool with one file system, and the answers that ``zfs`` gives of it."""

    datasets: dict[str, str] = dataclasses.field(default_factory=lambda: {"tank/images": "/tank/images"})
    snapshots: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    written: int = 0
    readonly: str = "off"
    unmountable: bool = False
    busy: int = 0
    fails: str = ""
    asked: list[str] = dataclasses.field(default_factory=list)
    state: str = "1 100 1"

    async def run(self, argv: Sequence[str]) -> Finished:
        self.asked.append(" ".join(argv[1:]))
        if self.fails:
            return Finished(1, "", self.fails)
        words = [word for word in argv[2:] if not word.startswith("-")]
        answer: Finished = getattr(self, f"_{argv[1]}")(list(argv[2:]), words)
        return answer

    async def describe(self, path: Path) -> str | None:
        if path == IMAGE:
            return self.state
        places = (*self.datasets.values(), *(f"/dev/zvol/{name}" for name in self.datasets))
        return self.state if any(path.is_relative_to(place) for place in places if "propolis-" in place) else None

    def _list(self, argv: list[str], words: list[str]) -> Finished:
        target = argv[-1]
        if "snapshot" in argv:
            names = [name for name in self.snapshots if name.startswith(f"{target}@")]
            with_clones = "name,clones" in argv
            lines = [f"{name}\t{','.join(self.snapshots[name]) or '-'}" if with_clones else name for name in names]
            return Finished(0, "".join(f"{line}\n" for line in lines), "")
        if "name,mountpoint,mounted,readonly" in argv:
            for name, mountpoint in self.datasets.items():
                if target.startswith(f"{mountpoint}/"):
                    return Finished(0, f"{name}\t{mountpoint}\tyes\t{self.readonly}\n", "")
            return Finished(1, "", f"cannot open '{target}': not a ZFS filesystem")
        assert argv == ["-H", "-o", "name", "tank"]
        return Finished(0, "tank\n", "")

    def _get(self, _argv: list[str], _words: list[str]) -> Finished:
        return Finished(0, f"{self.written}\n", "")

    def _sync(self, _argv: list[str], _words: list[str]) -> Finished:
        return Finished(0, "", "")

    def _snapshot(self, _argv: list[str], words: list[str]) -> Finished:
        if words[0] in self.snapshots:
            return Finished(1, "", f"cannot create snapshot '{words[0]}': dataset already exists")
        self.snapshots[words[0]] = set()
        return Finished(0, "", "")

    def _clone(self, _argv: list[str], words: list[str]) -> Finished:
        snapshot, clone = words[-2:]
        if snapshot not in self.snapshots:
            return Finished(1, "", f"cannot open '{snapshot}': dataset does not exist")
        self.snapshots[snapshot].add(clone)
        self.datasets[clone] = f"/{clone}"
        if self.unmountable:
            reason = f"cannot mount '/{clone}': failed to create mountpoint: Permission denied"
            return Finished(1, "", f"{reason}\nfilesystem successfully created, but not mounted")
        return Finished(0, "", "")

    def _rollback(self, _argv: list[str], words: list[str]) -> Finished:
        names = list(self.snapshots)
        for name in names[names.index(words[0]) + 1 :]:
            if name.startswith(words[0].partition("@")[0] + "@"):
                del self.snapshots[name]
        return Finished(0, "", "")

    def _destroy(self, _argv: list[str], words: list[str]) -> Finished:
        name = words[0]
        if "@" in name:
            if name not in self.snapshots:
                return Finished(1, "", "could not find any snapshots to destroy; check snapshot names.")
            if self.snapshots[name]:
                clones = "\n".join(sorted(self.snapshots[name]))
                advice = f"use '-R' to destroy the following datasets:\n{clones}"
                return Finished(1, "", f"cannot destroy '{name}': snapshot has dependent clones\n{advice}")
            del self.snapshots[name]
            return Finished(0, "", "")
        if name not in self.datasets:
            return Finished(1, "", f"cannot open '{name}': dataset does not exist")
        if self.busy:
            self.busy -= 1
            return Finished(1, "", f"cannot destroy '{name}': dataset is busy")
        del self.datasets[name]
        self.snapshots = {
            key: clones - {name} for key, clones in self.snapshots.items() if not key.startswith(f"{name}@")
        }
        return Finished(0, "", "")


@pytest.fixture
def pool() -> Pool:
    return Pool()


async def fork(pool: Pool, name: str = "fork-1", image: Path = IMAGE) -> ForkedImage:
    return await ZfsProvider(pool).fork(ForkRequest(image=image, image_format="raw", target=Path("/x") / name))


async def test_a_fork_is_a_clone_in_which_the_image_has_its_place(pool: Pool) -> None:
    made = await fork(pool)
    assert (made.provider, made.dataset) == ("zfs", "tank/images/propolis-fork-1")
    assert made.path == Path("/tank/images/propolis-fork-1/disk.raw")


async def test_a_clone_outside_of_the_runs_directories_has_the_runs_mark_in_its_name(pool: Pool) -> None:
    request = ForkRequest(image=IMAGE, image_format="raw", target=Path("/x/fork-1"), mark="run-agent")
    assert (await ZfsProvider(pool).fork(request)).dataset == "tank/images/propolis-run-agent-fork-1"


async def test_forks_of_one_generation_share_a_snapshot_and_a_changed_image_gets_another(pool: Pool) -> None:
    await fork(pool, "one")
    await fork(pool, "two")
    assert len(pool.snapshots) == 1
    pool.state = "1 100 2"
    await fork(pool, "three")
    assert len(pool.snapshots) == 2


async def test_the_last_fork_takes_the_snapshot_along(pool: Pool) -> None:
    one, two = await fork(pool, "one"), await fork(pool, "two")
    await ZfsProvider(pool).remove(one)
    assert len(pool.snapshots) == 1
    await ZfsProvider(pool).remove(two)
    await ZfsProvider(pool).remove(two)
    assert (pool.snapshots, list(pool.datasets)) == ({}, ["tank/images"])


async def test_a_clone_in_a_pool_that_is_not_imported_is_not_taken_for_removed(pool: Pool) -> None:
    made = await fork(pool, "one")
    pool.fails = "cannot open 'tank': dataset does not exist"
    with pytest.raises(ArtifactError, match=r"pool tank of \S+ is not imported.*\n.*zpool import tank"):
        await ZfsProvider(pool).remove(made)


async def test_a_snapshot_with_more_clones_than_an_error_has_lines_stays(pool: Pool) -> None:
    forks = [await fork(pool, f"fork-{number}") for number in range(12)]
    await ZfsProvider(pool).remove(forks[0])
    assert len(pool.snapshots) == 1


async def test_a_snapshot_that_another_process_removes_meanwhile_is_taken_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def vanishing(pool: Pool, argv: list[str], words: list[str]) -> Finished:
        taken.append(words[0])
        return Finished(0, "", "") if len(taken) == 1 else snapshot(pool, argv, words)

    snapshot = Pool._snapshot
    monkeypatch.setattr(Pool, "_snapshot", vanishing)
    await fork(pool)
    assert len(taken) == 2


async def test_a_fork_after_the_first_takes_one_look_and_one_clone(pool: Pool) -> None:
    await fork(pool, "one")
    pool.asked.clear()
    await fork(pool, "two")
    assert [line.split()[0] for line in pool.asked] == ["list", "clone"]


async def test_a_clone_that_cannot_be_mounted_is_not_left_behind(pool: Pool) -> None:
    pool.unmountable = True
    with pytest.raises(ArtifactError, match="cannot mount"):
        await fork(pool)
    assert (pool.snapshots, list(pool.datasets)) == ({}, ["tank/images"])


async def test_a_read_only_dataset_is_an_obstacle(pool: Pool) -> None:
    pool.readonly = "on"
    request = ForkRequest(image=IMAGE, image_format="raw", target=Path("/x/y"))
    assert "tank/images of /tank/images/disk.raw is read-only" in str(await ZfsProvider(pool).obstacle(request))


async def test_a_busy_clone_is_destroyed_when_it_is_let_go_of(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs, "_BUSY_RETRY_S", 0)
    made = await fork(pool)
    pool.busy = 3
    await ZfsProvider(pool).remove(made)
    assert list(pool.datasets) == ["tank/images"]


async def test_a_clone_that_stays_busy_is_an_error_that_names_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs, "BUSY_TIMEOUT_S", 0)
    made = await fork(pool)
    pool.busy = 1000
    with pytest.raises(ArtifactError, match=r"propolis-fork-1': dataset is busy"):
        await ZfsProvider(pool).remove(made)


async def test_snapshots_of_a_fork_roll_back(pool: Pool) -> None:
    provider, made = ZfsProvider(pool), await fork(pool)
    await provider.snapshot(made, "one")
    await provider.snapshot(made, "two")
    await provider.rollback(made, "one")
    with pytest.raises(ConfigError, match=r"no snapshot 'two'.*\n.*it has: one"):
        await provider.rollback(made, "two")


async def test_nothing_else_in_the_dataset_is_touched(pool: Pool) -> None:
    pool.snapshots["tank/images@daily"] = set()
    pool.datasets["tank/images/home"] = "/tank/images/home"
    made = await fork(pool)
    await ZfsProvider(pool).remove(made)
    assert await remove_unused_snapshots("tank/images", pool) == []
    assert list(pool.snapshots) == ["tank/images@daily"]
    stranger = dataclasses.replace(made, facts={"dataset": "tank/images/home", "snapshot": "tank/images@daily"})
    with pytest.raises(ArtifactError, match="was not made by this project"):
        await ZfsProvider(pool).remove(stranger)
    assert "tank/images/home" in pool.datasets


async def test_snapshots_that_a_killed_process_left_are_collected(pool: Pool) -> None:
    await fork(pool, "kept")
    pool.snapshots["tank/images@propolis-0123456789abcdef"] = set()
    assert await remove_unused_snapshots("tank/images", pool) == ["tank/images@propolis-0123456789abcdef"]
    assert len(pool.snapshots) == 1


async def test_a_volume_is_cloned_beside_itself(pool: Pool) -> None:
    made = await fork(pool, image=Path("/dev/zvol/tank/images/vol"))
    assert (made.path, made.dataset) == (Path("/dev/zvol/tank/images/propolis-fork-1"), "tank/images/propolis-fork-1")
    await fork(pool, "same", image=Path("/dev/zvol/tank/images/vol"))
    assert len(pool.snapshots) == 1
    pool.written = 512
    await fork(pool, "written", image=Path("/dev/zvol/tank/images/vol"))
    assert len(pool.snapshots) == 2


@pytest.mark.parametrize(
    ("said", "kind", "hint"),
    [
        ("cannot create 'tank/x': out of space", ResourceExhausted, "zpool list"),
        ("cannot create 'tank/x': permission denied", ArtifactError, "zfs allow"),
        ("cannot create snapshot: dataset is read-only", ArtifactError, "readonly"),
        ("something else", ArtifactError, ""),
    ],
)
async def test_what_zfs_refuses_is_said_with_a_remedy(pool: Pool, said: str, kind: type[Exception], hint: str) -> None:
    pool.fails = said
    with pytest.raises(kind) as caught:
        await fork(pool)
    assert said.partition(":")[2].strip() in str(caught.value)
    assert hint in str(caught.value)


async def test_where_there_is_no_zfs_the_obstacle_says_so(pool: Pool) -> None:
    class Without(Pool):
        async def run(self, argv: Sequence[str]) -> Finished:
            raise FileNotFoundError(2, "No such file or directory")

    request = ForkRequest(image=IMAGE, image_format="raw", target=Path("/x/y"))
    assert "zfs cannot be run" in str(await ZfsProvider(Without()).obstacle(request))
    with pytest.raises(CapabilityMissing):
        await ZfsProvider(Without()).fork(request)
    elsewhere = dataclasses.replace(request, image=Path("/home/disk.raw"))
    assert "not a ZFS filesystem" in str(await ZfsProvider(pool).obstacle(elsewhere))


async def test_a_missing_image_is_named(pool: Pool) -> None:
    with pytest.raises(ArtifactError, match="gone"):
        await fork(pool, image=Path("/tank/images/gone.raw"))
    assert list(pool.datasets) == ["tank/images"]
