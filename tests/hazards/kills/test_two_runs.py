"""Two runs at once never see each other's resources, and a run that lost its power leaves nothing to the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_run import LiveRun, started_run

VICTIM = """
import os
from pathlib import Path

async def test_victim(vm_factory):
    vm = await vm_factory.create("victim", guest="micro")
    await vm.ensure()
    Path(os.environ["TMPDIR"], os.environ["HAZARD_NAME"]).touch()
    go_on = Path(os.environ["TMPDIR"], "go-on")
    import asyncio
    async with asyncio.timeout(120):
        while not go_on.exists():
            await asyncio.sleep(0.02)
    assert (await vm.get_state()).value == "Creating"
"""

QUICK = """
async def test_quick(vm_factory):
    vm = await vm_factory.create("quick", guest="micro")
    await vm.ensure()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


def up(run: LiveRun, name: str) -> None:
    run.wait_until(lambda: (run.scratch / name).exists())


def agents(run: LiveRun) -> list[Path]:
    return sorted(path.parent for path in (run.place / "propolis").glob("*/agent.sock"))


def test_of_two_runs_one_is_killed_and_the_other_goes_on(place: Path) -> None:
    files = {"test_victim.py": VICTIM}
    (place / "other").mkdir()
    runtime = {"XDG_RUNTIME_DIR": str(place)}
    with (
        started_run(place, files, environment={"HAZARD_NAME": "first"}) as first,
        started_run(place / "other", files, environment={"HAZARD_NAME": "second", **runtime}) as second,
    ):
        up(first, "first")
        up(second, "second")
        directories = agents(first)
        assert len(directories) == 2, "each run has an agent of its own"
        for directory in directories:
            assert directory.stat().st_mode & 0o777 == 0o700
            assert (directory / "agent.sock").stat().st_mode & 0o777 == 0o600
            assert (directory / "ledger.jsonl").stat().st_mode & 0o077 == 0
        assert len({directory.name.split("-")[0] for directory in directories}) == 2

        os.kill(first.controller.pid, signal.SIGKILL)
        first.controller.wait()
        first.wait_until(lambda: len(agents(first)) == 1)
        assert "nothing to remove" in first.collect_garbage() or len(agents(first)) == 1
        (second.scratch / "go-on").touch()
        assert second.controller.wait(120) == pytest.ExitCode.OK, second.output
        first.wait_until_clean()


def half_written(ledger: Path) -> None:
    with ledger.open("ab") as file:
        file.write(b'{"to":"intent","entry":{"id":"half')


def cut_off(ledger: Path) -> None:
    os.truncate(ledger, ledger.stat().st_size - 7)


def other_boot(ledger: Path) -> None:
    header, _, rest = ledger.read_text().partition("\n")
    boot = json.loads(header)["agent"]["boot_id"]
    ledger.write_text(f"{header}\n{rest}".replace(boot, "00000000-0000-0000-0000-000000000000"))


@pytest.mark.parametrize("damage", [half_written, cut_off, other_boot], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("remedy", ["gc", "next run"])
def test_after_a_power_loss_the_ledger_is_enough(remedy: str, damage: object, place: Path) -> None:
    files = {"test_victim.py": VICTIM}
    with started_run(place, files, environment={"HAZARD_NAME": "victim"}) as run:
        up(run, "victim")
        (directory,) = agents(run)
        run.end_all()
    assert callable(damage)
    damage(directory / "ledger.jsonl")
    if remedy == "gc":
        said = run.collect_garbage()
    else:
        (place / "next").mkdir()
        with started_run(
            place / "next", {"test_quick.py": QUICK}, environment={"XDG_RUNTIME_DIR": str(place)}
        ) as following:
            assert following.controller.wait(120) == pytest.ExitCode.OK, following.output
            said = following.output
    run.wait_until_clean()
    assert not directory.exists(), said
