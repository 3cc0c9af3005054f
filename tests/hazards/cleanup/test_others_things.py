"""`propolis ps` and `propolis gc` leave alone what belongs to another user or lacks the project's mark."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_run import LiveRun, started_run

STRANGER = 54321

VICTIM = """
import asyncio, os
from pathlib import Path

async def test_victim(vm_factory):
    await (await vm_factory.create("victim", guest="micro")).ensure()
    Path(os.environ["TMPDIR"], "up").touch()
    await asyncio.sleep(600)
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make things of another user")


@pytest.fixture
def dead() -> Iterator[LiveRun]:
    """Return the directory of a run whose controller and agent were killed; its ledger is left."""
    place = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    try:
        with started_run(place, {"test_victim.py": VICTIM}) as run:
            run.wait_until(lambda: (run.scratch / "up").exists())
            run.end_all()
            yield run
    finally:
        shutil.rmtree(place)


def base_of(run: LiveRun) -> Path:
    return run.place / "propolis"


def snapshot(base: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything there, with its owner, mode and content."""
    found = {}
    for path in sorted(base.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
    return found


def give_away(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


@needs_root
def test_a_dead_run_of_another_user_stays_as_it_is(dead: LiveRun) -> None:
    (directory,) = base_of(dead).glob("*-*/")
    copy = shutil.copytree(
        directory,
        directory.with_name(f"{secrets.token_hex(8)}-{secrets.token_hex(4)}"),
        ignore=lambda place, names: [name for name in names if Path(place, name).is_socket()],
    )
    give_away(copy)
    before = snapshot(copy)
    dead.command("ps")
    said = dead.command("gc")
    assert f"belongs to uid {STRANGER}" in said
    assert not directory.exists(), "the user's own dead run goes"
    assert snapshot(copy) == before


def test_what_lacks_the_mark_stays_as_it_is(dead: LiveRun) -> None:
    base = base_of(dead)
    (directory,) = base.glob("*-*/")
    word = directory.name.partition("-")[0]
    (base / "notes.txt").write_text("mine")
    for name in ("photos", f"{secrets.token_hex(8)}-{secrets.token_hex(4)}"):
        (base / name).mkdir()
        (base / name / "file").write_text("mine")
        (base / name / "link").symlink_to(base / "notes.txt")
        os.utime(base / name, (0, 0))
    before = {path: facts for path, facts in snapshot(base).items() if word not in path}
    # Neither the directory as an argument nor the run's id in it makes a process the project's.
    with subprocess.Popen([sys.executable, "-c", "input()", str(directory), word], stdin=subprocess.PIPE) as bystander:
        dead.command("ps")
        said = dead.command("gc")
        assert not directory.exists(), said
        bystander.communicate(b"go\n")
    assert bystander.returncode == 0
    assert {path: facts for path, facts in snapshot(base).items() if word not in path} == before


@needs_root
def test_another_users_process_that_looks_like_the_runs_is_not_touched(dead: LiveRun) -> None:
    (directory,) = base_of(dead).glob("*-*/")
    command = ["sh", "-c", "read line", "pytest_propolis.agent", directory.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=STRANGER, group=STRANGER) as theirs:
        assert "removed" in dead.command("gc")
        assert theirs.poll() is None
        theirs.send_signal(signal.SIGTERM)
    assert theirs.returncode == -signal.SIGTERM
