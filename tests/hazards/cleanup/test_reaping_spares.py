"""The reaper touches nothing of the living or of others, and removes nothing through links and mounts."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from dead_agents import (
    OWNER,
    STRANGER,
    LivingAgent,
    can_give_files_away,
    dead_agent,
    fork,
    intend_path,
    listed,
    make_directory,
    make_file,
    needs_mount,
    process_of,
    reasons,
    run_directory,
    snapshot,
    start_process,
)
from msgspec.structs import replace

from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger, read_ledger
from pytest_propolis.ledger.reaper import reap
from pytest_propolis.ledger.reaper_report import Report
from pytest_propolis.ledger.survey import survey


def test_a_living_run_is_not_touched(base: Path) -> None:
    with LivingAgent(base, lambda ledger, directory: make_directory(ledger, directory / "d")) as agent:
        before = snapshot(base)
        report = reap(base, include_kept=True)
        assert snapshot(base) == before
    assert (report.removed, report.failed) == ([], [])
    assert [left.directory for left in report.left] == [agent.directory]


def test_an_agent_that_looks_dead_but_holds_its_ledger_is_alive(base: Path) -> None:
    """Seen from another machine or container that shares the directory, the pid is meaningless."""
    waiting, release = os.pipe()

    def hold() -> None:
        os.close(release)
        os.read(waiting, 1)

    directory = dead_agent(base, lambda ledger, _: fork(hold))
    os.close(waiting)
    before = snapshot(base)
    assert not read_ledger(directory / LEDGER_NAME).header.agent.is_alive()
    report = reap(base)
    os.close(release)
    assert snapshot(base) == before
    assert "living agent" in reasons(report)


def test_an_agent_of_another_pid_namespace_cannot_be_told_dead(base: Path) -> None:
    directory = dead_agent(base, lambda ledger, _: None)
    path = directory / LEDGER_NAME
    header = read_ledger(path).header
    elsewhere = msgspec.structs.replace(header, agent=replace(header.agent, pid_namespace="pid:[1]"))
    path.write_bytes(msgspec.json.encode(elsewhere) + b"\n")
    assert "not provably dead" in reasons(reap(base))
    assert directory.exists()


def test_the_process_that_got_a_recycled_pid_is_not_touched(base: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bystander:
        identity = ProcessIdentity.of(bystander.pid)
        assert identity.start_time
        former = replace(identity, start_time=identity.start_time - 1)
        dead_agent(base, lambda ledger, _: ledger.intend("process", former.facts(), OWNER))
        report = reap(base)
        assert len(report.removed) == 1
        assert bystander.communicate(b"still here")[0] == b"still here"
        assert bystander.returncode == 0


def test_what_is_another_users_is_not_touched(base: Path) -> None:
    if not can_give_files_away(base):
        pytest.skip("only root can make files of another user")

    def act(ledger: Ledger, directory: Path) -> None:
        for name in ("theirs", "nested"):
            make_directory(ledger, directory / name)
        os.chown(directory / "theirs", STRANGER, STRANGER)
        os.chown(directory / "nested" / "below" / "disk.img", STRANGER, STRANGER)
        os.chown(make_file(ledger, directory / "their.file").what["path"], STRANGER, STRANGER)

    directory = dead_agent(base, act)
    report = reap(base)
    assert report.removed == []
    assert [failure.reason.count(f"belongs to uid {STRANGER}") for failure in report.failed] == [1, 1, 1]
    assert (directory / "theirs" / "below" / "disk.img").exists()
    assert (directory / "nested" / "below" / "disk.img").exists()
    assert (directory / "their.file").exists()


@pytest.mark.parametrize("theirs", [".", LEDGER_NAME])
def test_another_users_ledger_is_not_believed(base: Path, theirs: str) -> None:
    if not can_give_files_away(base):
        pytest.skip("only root can make files of another user")
    directory = dead_agent(base, lambda ledger, directory: make_file(ledger, directory / "file"))
    os.chown(directory / theirs, STRANGER, STRANGER)
    before = snapshot(base)
    assert f"belongs to uid {STRANGER}" in reasons(reap(base))
    assert snapshot(base) == before


@pytest.mark.parametrize("name", [".", LEDGER_NAME])
def test_a_ledger_that_others_may_write_is_not_believed(base: Path, name: str) -> None:
    directory = dead_agent(base, lambda ledger, directory: make_file(ledger, directory / "file"))
    (directory / name).chmod((directory / name).stat().st_mode | stat.S_IWOTH)
    before = snapshot(base)
    assert "others may write" in reasons(reap(base))
    assert snapshot(base) == before


@pytest.mark.parametrize(
    "place", ["/etc/passwd-propolis-test", "relative/path", "{run}/../../precious", "{base}", "{base}/other", "/"]
)
def test_a_path_outside_the_run_directory_is_not_touched(base: Path, tmp_path: Path, place: str) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()

    def act(ledger: Ledger, directory: Path) -> None:
        ledger.intend("directory", {"path": place.format(run=directory, base=base)}, OWNER)

    directory = dead_agent(base, act)
    report = reap(base)
    assert len(report.failed) == 1
    assert report.removed == []
    assert precious.exists()
    assert directory.exists()


def test_an_allowed_root_itself_and_what_holds_the_run_stay(base: Path, tmp_path: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        intend_path(ledger, "directory", base)
        intend_path(ledger, "directory", tmp_path)

    dead_agent(base, act)
    report = reap(base, roots=[tmp_path])
    assert reasons(report).count("holds the run directory") == 2
    assert base.exists()


def test_a_file_entry_does_not_remove_a_directory(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        intend_path(ledger, "file", directory / "d")
        (directory / "d").mkdir()

    directory = dead_agent(base, act)
    assert "is a directory, not a file" in reasons(reap(base))
    assert (directory / "d").exists()


def test_a_symbolic_link_is_removed_without_what_it_points_to(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "below").mkdir(parents=True)
    (precious / "file").write_text("content")

    def act(ledger: Ledger, directory: Path) -> None:
        intend_path(ledger, "directory", directory / "as-directory")
        intend_path(ledger, "file", directory / "as-file")
        make_directory(ledger, directory / "tree")
        (directory / "as-directory").symlink_to(precious)
        (directory / "as-file").symlink_to(precious / "file")
        (directory / "tree" / "below" / "inner").symlink_to(precious)

    before = snapshot(precious)
    dead_agent(base, act)
    assert reasons(reap(base)) == ""
    assert list(base.iterdir()) == []
    assert snapshot(precious) == before


def test_nothing_is_reached_through_a_symbolic_link(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "below").mkdir(parents=True)

    def act(ledger: Ledger, directory: Path) -> None:
        intend_path(ledger, "directory", directory / "link" / "below")
        (directory / "link").symlink_to(precious)

    dead_agent(base, act)
    assert "symbolic link" in reasons(reap(base))
    assert (precious / "below").exists()


def test_a_run_directory_that_is_a_symbolic_link_is_ignored(base: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    target = dead_agent(elsewhere, lambda ledger, directory: make_file(ledger, directory / "file"))
    (base / "link").symlink_to(target)
    assert reap(base) == Report()
    assert (target / "file").exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_ledger_that_is_no_file_hangs_and_fools_nobody(base: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    target = dead_agent(elsewhere, lambda ledger, _: None)
    directory = run_directory(base)
    if kind == "link":
        (directory / LEDGER_NAME).symlink_to(target / LEDGER_NAME)
    else:
        os.mkfifo(directory / LEDGER_NAME, 0o600)
    report = reap(base)
    assert [left.directory for left in report.left] == [directory]
    assert survey(base)[0].problem
    assert target.exists()


@needs_mount
def test_nothing_is_removed_through_a_mount(base: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("content")

    def act(ledger: Ledger, directory: Path) -> None:
        make_directory(ledger, directory / "a dir\\with")
        (directory / "a dir\\with" / "mount point").mkdir()

    directory = dead_agent(base, act)
    script = f"""
from pathlib import Path
from pytest_propolis.agent_api.agent_process import LOG_NAME
from pytest_propolis.ledger.reaper import reap
report = reap(Path({str(base)!r}))
assert not report.removed, report
assert "mounted at" in report.failed[0].reason, report
"""
    mount = 'mount --bind "$1" "$2" && exec "$3" -c "$4"'
    point = directory / "a dir\\with" / "mount point"
    subprocess.run(["unshare", "-m", "sh", "-c", mount, "sh", precious, point, sys.executable, script], check=True)
    assert (precious / "file").exists()
    assert reasons(reap(base)) == ""
    assert (precious / "file").exists()
    assert not directory.exists()


def test_a_dry_run_changes_nothing_and_says_what_would_go(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        make_directory(ledger, directory / "disks")
        start_process(ledger)
        ledger.intend("wormhole", {}, OWNER)
        with (directory / LEDGER_NAME).open("ab") as file:
            file.write(b'{"torn')

    directory = dead_agent(base, act)
    stillborn = base / "stillborn"
    stillborn.mkdir(mode=0o700)
    os.utime(stillborn, (0, 0))
    before, entries = snapshot(base), listed(directory)
    report = reap(base, dry_run=True)
    assert snapshot(base) == before
    assert process_of(entries[1]).is_alive()
    assert report.dry_run
    assert report.removed == [entries[1], entries[0]]
    assert [failure.entry for failure in report.failed] == [entries[2]]
    assert report.strays == []
    assert report.directories == [stillborn]
