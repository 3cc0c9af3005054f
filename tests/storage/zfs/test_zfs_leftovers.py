"""`propolis gc` and a real pool, in a guest with ZFS: clones of dead owners go, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from propolis_command import COMMAND
from zfs_guest import GuestExecutor, needs_zfs_guest, zfs_program

from pytest_propolis import TestVm
from pytest_propolis.ledger.audit import audit
from pytest_propolis.storage.forks.fork import ForkedImage, ForkRequest
from pytest_propolis.storage.forks.zfs import ZfsProvider

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    needs_zfs_guest,
]

IMAGE = Path("/tank/images/disk.raw")

# An agent whose ledger lists the clones that it is given, and that ends without a word.
AGENT = """
import json, sys
from pathlib import Path
from pytest_propolis.ledger.entry import Owner
from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger

ledger = Ledger.open(Path(sys.argv[1], LEDGER_NAME), run="the-run")
for facts in json.loads(sys.argv[2]):
    ledger.live(ledger.intend("zfs-clone", facts, Owner("gw0", ProcessIdentity.current())))
"""


class DeadRuns:
    """Runs whose agents died, and the command that collects what they have left in the guest's pool."""

    def __init__(self, place: Path, program: Path) -> None:
        self._base = place / "propolis"
        self._base.mkdir(mode=0o700)
        self._environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(place),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
        }

    async def leave(self, *clones: Mapping[str, str]) -> None:
        """Have an agent list clones and die."""
        directory = self._base / secrets.token_hex(4)
        directory.mkdir(mode=0o700)
        agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, directory, json.dumps(clones))
        assert await agent.wait() == 0

    async def gc(self, *arguments: str, status: int = 0) -> str:
        """Run ``propolis gc``; return its output."""
        command = await asyncio.create_subprocess_exec(
            *COMMAND,
            "gc",
            *arguments,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await command.communicate()
        assert command.returncode == status, output.decode()
        return output.decode()

    async def audit(self, run: str) -> list[str]:
        """Return the leaks of a run."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", self._environment["PATH"])
            return list(map(str, await asyncio.to_thread(audit, self._base, run)))


@pytest_asyncio.fixture(loop_scope="module")
async def runs(guest: TestVm, tmp_path: Path) -> AsyncIterator[DeadRuns]:
    async with zfs_program(GuestExecutor(guest), tmp_path) as program:
        place = tmp_path / "runtime"
        place.mkdir(mode=0o700)
        yield DeadRuns(place, program)


async def fork(guest: TestVm, name: str, *, mark: str = "") -> ForkedImage:
    request = ForkRequest(image=IMAGE, image_format="raw", target=Path("/x") / name, mark=mark)
    return await ZfsProvider(GuestExecutor(guest)).fork(request)


async def datasets(guest: TestVm) -> set[str]:
    return set((await guest.run("zfs list -H -t all -o name -r tank")).splitlines())


async def test_clones_of_a_dead_run_go_with_their_snapshot(guest: TestVm, runs: DeadRuns) -> None:
    before = await datasets(guest)
    made = [await fork(guest, name) for name in ("one", "two")]
    await ZfsProvider(GuestExecutor(guest)).snapshot(made[0], "of-the-test")
    await runs.leave(*(one.facts for one in made))
    assert "would remove" in await runs.gc("--dry-run")
    assert len(await datasets(guest)) == len(before) + 4  # two clones and two snapshots
    await runs.gc()
    assert await datasets(guest) == before
    assert await runs.gc() == "nothing to remove\n"


async def test_a_clone_of_a_living_run_keeps_the_snapshot_that_both_share(guest: TestVm, runs: DeadRuns) -> None:
    living, dead = await fork(guest, "living"), await fork(guest, "dead")
    await guest.run("zfs snapshot tank/images@daily; zfs create tank/propolis-of-a-stranger")
    await runs.leave(dead.facts)
    await runs.gc()
    left = await datasets(guest)
    assert dead.dataset not in left
    assert {living.dataset, living.facts["snapshot"], "tank/images@daily", "tank/propolis-of-a-stranger"} <= left
    await ZfsProvider(GuestExecutor(guest)).remove(living)
    await guest.run("zfs destroy tank/images@daily; zfs destroy tank/propolis-of-a-stranger")


async def test_a_dataset_without_the_projects_prefix_is_never_destroyed(guest: TestVm, runs: DeadRuns) -> None:
    before = await datasets(guest)
    await runs.leave({"dataset": "tank/images", "snapshot": "tank/images@propolis-0"})
    assert "tank/images was not made by this project" in await runs.gc(status=1)
    assert await datasets(guest) == before


async def test_a_clone_that_is_gone_already_is_fine(guest: TestVm, runs: DeadRuns) -> None:
    made = await fork(guest, "gone")
    await ZfsProvider(GuestExecutor(guest)).remove(made)
    await runs.leave(made.facts)
    await runs.gc()
    assert await runs.gc() == "nothing to remove\n"


async def test_a_clone_in_a_pool_that_is_away_stays_listed_until_it_is_back(guest: TestVm, runs: DeadRuns) -> None:
    before = await datasets(guest)
    made = await fork(guest, "away")
    await runs.leave(made.facts)
    await guest.run("zpool export tank", timeout_s=60)
    try:
        assert "the pool tank of tank/images/propolis-away is not imported" in await runs.gc(status=1)
    finally:
        await guest.run("zpool import -d /var/tmp tank", timeout_s=60)
    await runs.gc()
    assert await datasets(guest) == before


async def test_the_audit_finds_a_clone_that_no_ledger_lists(guest: TestVm, runs: DeadRuns) -> None:
    run = secrets.token_hex(8)
    made = await fork(guest, "lost", mark=f"{run}-agent")
    provider = ZfsProvider(GuestExecutor(guest))
    await provider.snapshot(made, "of-the-test")
    assert await runs.audit(run) == [f"ZFS dataset {made.dataset}", f"ZFS dataset {made.dataset}@of-the-test"]
    assert await runs.audit(secrets.token_hex(8)) == []
    await provider.remove(made)
    assert await runs.audit(run) == []
