"""Forks on a real pool, in a guest with ZFS, where that was built: ``python tests/support/zfs_guest.py``."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from zfs_guest import GuestExecutor, needs_zfs_guest

from pytest_propolis import TestVm
from pytest_propolis.errors import ArtifactError, ConfigError, ResourceExhausted
from pytest_propolis.storage.forks import zfs
from pytest_propolis.storage.forks.fork import ForkedImage, ForkRequest
from pytest_propolis.storage.forks.zfs import ZfsProvider, remove_unused_snapshots
from pytest_propolis.storage.programs import Finished

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    needs_zfs_guest,
]

IMAGE = Path("/tank/images/disk.raw")
VOLUME = Path("/dev/zvol/tank/vol")


@pytest_asyncio.fixture(loop_scope="module")
async def pool(guest: TestVm) -> AsyncIterator[GuestExecutor]:
    """Check that nothing of the project's is left in the pool after a test."""
    yield GuestExecutor(guest)
    left = await guest.run("zfs list -H -t all -o name -r tank | grep propolis-", check=False)
    assert left == "", "forks or snapshots are left"


async def fork(pool: GuestExecutor, name: str = "one", image: Path = IMAGE) -> ForkedImage:
    return await ZfsProvider(pool).fork(ForkRequest(image=image, image_format="raw", target=Path("/x") / name))


async def test_a_fork_is_writable_and_the_image_stays_as_it_is(guest: TestVm, pool: GuestExecutor) -> None:
    made = await fork(pool)
    assert made.path == Path("/tank/images/propolis-one/disk.raw")
    await guest.run(f"printf CHANGED! | dd of={made.path} conv=notrunc status=none")
    assert await guest.run(f"head -c 8 {made.path}; head -c 8 {IMAGE}") == "CHANGED!original"
    await ZfsProvider(pool).remove(made)
    await ZfsProvider(pool).remove(made)
    assert await guest.run(f"head -c 8 {IMAGE}; ls /tank/images") == "originaldisk.raw"


@pytest.mark.slow
async def test_many_forks_share_one_snapshot_and_the_last_takes_it_along(guest: TestVm, pool: GuestExecutor) -> None:
    forks = [await fork(pool, f"fork-{number}") for number in range(7)]
    assert len((await guest.run("zfs list -H -t snapshot -o name tank/images")).splitlines()) == 1
    for made in forks:
        await ZfsProvider(pool).remove(made)


async def test_a_changed_image_is_forked_as_it_is_now(guest: TestVm, pool: GuestExecutor) -> None:
    before = await fork(pool, "before")
    await guest.run(f"printf modified | dd of={IMAGE} conv=notrunc status=none")
    after = await fork(pool, "after")
    await guest.run(f"printf original | dd of={IMAGE} conv=notrunc status=none")
    assert await guest.run(f"head -c 8 {before.path}; head -c 8 {after.path}") == "originalmodified"
    for made in (before, after):
        await ZfsProvider(pool).remove(made)


async def test_snapshots_of_a_fork_roll_back(guest: TestVm, pool: GuestExecutor) -> None:
    provider, made = ZfsProvider(pool), await fork(pool)
    await provider.snapshot(made, "clean")
    await guest.run(f"printf CHANGED! | dd of={made.path} conv=notrunc status=none")
    await provider.snapshot(made, "later")
    await provider.rollback(made, "clean")
    assert await guest.run(f"head -c 8 {made.path}") == "original"
    with pytest.raises(ConfigError, match=r"no snapshot 'later'.*\n.*it has: clean"):
        await provider.rollback(made, "later")
    with pytest.raises(ArtifactError, match="already exists"):
        await provider.snapshot(made, "clean")
    await provider.remove(made)


async def test_a_read_only_file_system_is_an_obstacle(guest: TestVm, pool: GuestExecutor) -> None:
    await guest.run("zfs set readonly=on tank/images")
    try:
        request = ForkRequest(image=IMAGE, image_format="raw", target=Path("/x/one"))
        assert "tank/images of /tank/images/disk.raw is read-only" in str(await ZfsProvider(pool).obstacle(request))
    finally:
        await guest.run("zfs set readonly=off tank/images")


async def test_a_file_system_mounted_elsewhere_is_forked_beside_it(guest: TestVm, pool: GuestExecutor) -> None:
    await guest.run("zfs set mountpoint=/srv/pictures tank/images")
    try:
        made = await fork(pool, image=Path("/srv/pictures/disk.raw"))
        assert made.path == Path("/srv/pictures/propolis-one/disk.raw")
        assert await guest.run(f"head -c 8 {made.path}") == "original"
        await ZfsProvider(pool).remove(made)
    finally:
        await guest.run("zfs inherit mountpoint tank/images")


async def test_a_busy_fork_is_removed_when_it_is_let_go_of(guest: TestVm, pool: GuestExecutor) -> None:
    made = await fork(pool)
    await guest.run(f"sleep 600 < {made.path} & holder=$!")
    removal = asyncio.create_task(ZfsProvider(pool).remove(made))
    while not any("destroy -r" in line for line in pool.commands):
        await asyncio.sleep(0)
    await guest.run("kill $holder; wait $holder", check=False)
    await removal


async def test_a_fork_that_stays_busy_is_an_error_that_names_it(
    guest: TestVm, pool: GuestExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await fork(pool)
    await guest.run(f"sleep 600 < {made.path} & holder=$!")
    with monkeypatch.context() as impatient:
        impatient.setattr(zfs, "BUSY_TIMEOUT_S", 0)
        with pytest.raises(ArtifactError, match=r"propolis-one.*busy"):
            await ZfsProvider(pool).remove(made)
    await guest.run("kill $holder; wait $holder", check=False)
    await ZfsProvider(pool).remove(made)


async def test_a_snapshot_that_is_still_needed_stays_and_others_are_collected(
    guest: TestVm, pool: GuestExecutor
) -> None:
    made = [await fork(pool, f"fork-{number}") for number in range(6)]
    await guest.run("zfs snapshot tank/images@daily; zfs snapshot tank/images@propolis-0123456789abcdef")
    assert await remove_unused_snapshots("tank/images", pool) == ["tank/images@propolis-0123456789abcdef"]
    for one in made:
        await ZfsProvider(pool).remove(one)
    stranger = dataclasses.replace(made[0], facts={"dataset": "tank/images", "snapshot": "tank/images@daily"})
    with pytest.raises(ArtifactError, match="was not made by this project"):
        await ZfsProvider(pool).remove(stranger)
    assert await guest.run("zfs list -H -t snapshot -o name") == "tank/images@daily"
    await guest.run("zfs destroy tank/images@daily")


@pytest.mark.slow
async def test_a_volume_is_cloned_as_it_is_now(guest: TestVm, pool: GuestExecutor) -> None:
    await guest.run(f"zfs create -V 8M tank/vol; until [ -b {VOLUME} ]; do sleep 0.1; done", timeout_s=60)
    write = f"printf %s | dd of={VOLUME} conv=fsync,notrunc status=none"
    await guest.run(write.replace("%s", "original"))
    forks = [await fork(pool, name, VOLUME) for name in ("one", "two")]
    assert len((await guest.run("zfs list -H -t snapshot -o name tank/vol")).splitlines()) == 1
    await guest.run(write.replace("%s", "modified"))
    forks.append(await fork(pool, "three", VOLUME))
    # As many bytes as before: only what has been written since the snapshot tells the two apart.
    await guest.run(write.replace("%s", "replaced"))
    forks.append(await fork(pool, "four", VOLUME))
    contents = [await guest.run(f"head -c 8 {made.path}") for made in forks]
    assert contents == ["original", "original", "modified", "replaced"]
    await guest.run(f"printf CHANGED! | dd of={forks[0].path} conv=fsync,notrunc status=none")
    assert await guest.run(f"head -c 8 {VOLUME}") == "replaced"
    for made in forks:
        await ZfsProvider(pool).remove(made)
    await guest.run("udevadm settle; zfs destroy tank/vol")


async def test_a_full_pool_is_named(guest: TestVm, pool: GuestExecutor) -> None:
    await guest.run("zfs create -o quota=1M tank/small && printf original > /tank/small/disk.raw")
    await guest.run("dd if=/dev/urandom of=/tank/small/filling bs=64k status=none", check=False, timeout_s=60)
    await guest.run("zpool sync tank")
    with pytest.raises(ResourceExhausted, match=r"tank/small.*(out of space|quota)"):
        await fork(pool, image=Path("/tank/small/disk.raw"))
    await guest.run("zfs destroy -r tank/small")


async def test_a_read_only_pool_is_named(guest: TestVm, pool: GuestExecutor) -> None:
    await guest.run("zpool export tank && zpool import -o readonly=on -d /var/tmp tank", timeout_s=60)
    try:
        with pytest.raises(ArtifactError, match=r"read-only.*\n.*without -o readonly=on"):
            await fork(pool)
    finally:
        await guest.run("zpool export tank && zpool import -d /var/tmp tank", timeout_s=60)


async def test_a_degraded_pool_is_used(guest: TestVm, pool: GuestExecutor) -> None:
    await guest.run("truncate -s 128M /var/tmp/left /var/tmp/right")
    await guest.run(
        "zpool create -o cachefile=none pair mirror /var/tmp/left /var/tmp/right && zpool offline pair /var/tmp/right"
    )
    assert await guest.run("zpool list -H -o health pair") == "DEGRADED"
    await guest.run("printf original > /pair/disk.raw")
    made = await fork(pool, image=Path("/pair/disk.raw"))
    assert await guest.run(f"cat {made.path}") == "original"
    await ZfsProvider(pool).remove(made)
    assert await guest.run("zfs list -H -t all -o name -r pair") == "pair"
    await guest.run("zpool destroy pair")


async def test_what_is_not_on_zfs_is_an_obstacle(pool: GuestExecutor) -> None:
    request = ForkRequest(image=Path("/etc/hosts"), image_format="raw", target=Path("/x/one"))
    assert "/etc/hosts" in str(await ZfsProvider(pool).obstacle(request))
    with pytest.raises(ArtifactError, match=r"/tank/images/gone\.raw"):
        await fork(pool, image=Path("/tank/images/gone.raw"))


async def test_an_ordinary_user_is_told_what_to_delegate_and_leaves_nothing(guest: TestVm, pool: GuestExecutor) -> None:
    class AsNobody:
        async def run(self, argv: Sequence[str]) -> Finished:
            return await pool.run(["setpriv", "--reuid=65534", "--clear-groups", *argv])

        async def describe(self, path: Path) -> str | None:
            return await pool.describe(path)

    provider = ZfsProvider(AsNobody())
    request = ForkRequest(image=IMAGE, image_format="raw", target=Path("/x/one"))
    with pytest.raises(ArtifactError, match=r"permission denied.*\n.*zfs allow"):
        await provider.fork(request)
    await guest.run("zfs allow nobody clone,create,destroy,mount,snapshot,rollback tank/images")
    try:
        with pytest.raises(ArtifactError, match=r"successfully created.*\n.*mounting needs root"):
            await provider.fork(request)
    finally:
        await guest.run("zfs unallow nobody tank/images")
