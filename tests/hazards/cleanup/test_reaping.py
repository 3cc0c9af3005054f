"""The reaper removes the resources of dead agents, except kept ones and those of unknown kinds."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from dead_agents import (
    OWNER,
    Act,
    LivingAgent,
    Unprivileged,
    can_give_files_away,
    dead_agent,
    intend_path,
    listed,
    make_directory,
    make_file,
    process_of,
    reasons,
    snapshot,
    spawn,
    start_process,
)

from pytest_propolis.errors import AgentError
from pytest_propolis.ledger.cleanup import CLEANUPS, DeadRun
from pytest_propolis.ledger.entry import Entry
from pytest_propolis.ledger.identity import ProcessIdentity, find_tagged
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger, read_ledger
from pytest_propolis.ledger.reaper import reap
from pytest_propolis.ledger.reaper_report import Report
from pytest_propolis.ledger.survey import survey


def test_everything_of_a_dead_agent_goes_newest_first(base: Path, tmp_path: Path) -> None:
    outside = tmp_path / "images"
    outside.mkdir()

    def act(ledger: Ledger, directory: Path) -> None:
        make_directory(ledger, directory / "disks")
        make_directory(ledger, outside / "fork")
        make_file(ledger, directory / "agent.sock", "socket")
        start_process(ledger)

    directory = dead_agent(base, act)
    entries = listed(directory)
    process = process_of(entries[-1])
    assert process.is_alive()

    report = reap(base, roots=[outside])

    assert reasons(report) == ""
    assert [entry.id for entry in report.removed] == [entry.id for entry in reversed(entries)]
    assert report.directories == [directory]
    assert not process.is_alive()
    assert list(base.iterdir()) == list(outside.iterdir()) == []


def test_a_second_reaping_finds_nothing(base: Path) -> None:
    dead_agent(base, lambda ledger, directory: None)
    reap(base)
    assert reap(base) == Report()


def test_where_no_agent_ever_ran_there_is_nothing(tmp_path: Path) -> None:
    assert reap(tmp_path / "nowhere") == Report()
    assert survey(tmp_path / "nowhere") == ()


def test_what_was_intended_but_never_made_is_undone(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        for kind in ("directory", "file", "socket"):
            intend_path(ledger, kind, directory / "missing" / kind)
        ledger.intend("process", {"name": "qemu"}, OWNER)

    dead_agent(base, act)
    report = reap(base)
    assert len(report.removed) == 4
    assert list(base.iterdir()) == []


def test_a_process_whose_pid_was_never_written_down_is_found_by_its_mark(base: Path) -> None:
    directory = dead_agent(base, lambda ledger, _: spawn(ledger.intend("process", {}, OWNER).id))
    (entry,) = listed(directory)
    assert not entry.is_live
    (process,) = find_tagged(entry.id)
    report = reap(base)
    assert [removed.id for removed in report.removed] == [entry.id]
    assert not process.is_alive()


def test_a_child_of_a_listed_process_ends_with_it(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        entry = start_process(ledger)
        spawn(entry.id)

    directory = dead_agent(base, act)
    family = find_tagged(listed(directory)[0].id)
    assert len(family) == 2
    reap(base)
    assert not any(process.is_alive() for process in family)


def test_a_process_that_only_carries_the_runs_mark_is_a_stray_and_ends(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        entry = ledger.intend("process", {}, OWNER)
        spawn(entry.id)
        ledger.gone(entry)

    directory = dead_agent(base, act)
    strays = find_tagged(read_ledger(directory / LEDGER_NAME).header.tag)
    assert len(strays) == 1
    assert reap(base, dry_run=True).strays == strays
    assert strays[0].is_alive()
    assert reap(base).strays == strays
    assert not strays[0].is_alive()


@pytest.mark.parametrize("bare", [False, True])
def test_a_process_that_carries_only_the_bare_mark_ends_unless_something_is_kept(base: Path, bare: bool) -> None:
    """It could belong to kept resources."""

    def act(ledger: Ledger, directory: Path) -> None:
        spawn(ledger.header.tag)
        if not bare:
            ledger.keep(make_file(ledger, directory / "disk"), None, reason="test_x failed")

    directory = dead_agent(base, act)
    (process,) = find_tagged(read_ledger(directory / LEDGER_NAME).header.tag)
    assert len(reap(base).strays) == bare
    assert process.is_alive() != bare


def test_a_user_without_privileges_removes_read_only_directories(unprivileged: Unprivileged) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        make_directory(ledger, directory / "template")
        (directory / "template" / "below").chmod(0o500)

    def check(base: Path) -> None:
        dead_agent(base, act)
        assert reasons(reap(base)) == ""
        assert list(base.iterdir()) == []

    unprivileged(check)


def test_another_users_process_is_alive_and_cannot_be_ended(base: Path, unprivileged: Unprivileged) -> None:
    if not can_give_files_away(base):
        pytest.skip("only root can become another user")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as theirs:
        identity = ProcessIdentity.of(theirs.pid)

        def check(base: Path) -> None:
            assert identity.is_alive()
            dead_agent(base, lambda ledger, _: ledger.intend("process", identity.facts(), OWNER))
            report = reap(base)
            assert report.removed == []
            assert "not permitted" in reasons(report)

        unprivileged(check)
        assert theirs.poll() is None


def test_unlisted_files_of_the_run_directory_go_with_it(base: Path) -> None:
    dead_agent(base, lambda ledger, directory: (directory / "agent.log").write_text("log"))
    reap(base)
    assert list(base.iterdir()) == []


def kept_things(until: float | None) -> Act:
    def act(ledger: Ledger, directory: Path) -> None:
        make_directory(ledger, directory / "vm")
        ledger.keep(make_file(ledger, directory / "vm" / "disk.qcow2"), until, reason="test_x failed")
        make_file(ledger, directory / "not-kept")
        ledger.keep(start_process(ledger), until, reason="test_x failed")

    return act


def test_what_is_kept_stays_with_the_directory_that_it_is_in(base: Path) -> None:
    directory = dead_agent(base, kept_things(None))
    process = process_of(listed(directory)[-1])
    report = reap(base)
    assert [entry.kind for entry in report.kept] == ["directory", "file", "process"]
    assert [entry.what["path"] for entry in report.removed] == [str(directory / "not-kept")]
    assert (directory / "vm" / "disk.qcow2").exists()
    assert process.is_alive()
    assert [entry.kind for entry in listed(directory)] == ["directory", "file", "process"]


def test_a_kept_process_does_not_protect_another_entrys_process(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        kept = ledger.keep(ledger.intend("process", {}, OWNER), None, reason="test_x failed")
        spawn(kept.id)
        finished = ledger.intend("process", {}, OWNER)
        spawn(finished.id)
        ledger.gone(finished)

    directory = dead_agent(base, act)
    (kept,) = find_tagged(listed(directory)[0].id)
    report = reap(base)
    assert len(report.strays) == 1
    assert kept.is_alive()


def test_kept_things_leave_when_asked(base: Path) -> None:
    process = process_of(listed(dead_agent(base, kept_things(None)))[-1])
    report = reap(base, include_kept=True)
    assert report.kept == []
    assert not process.is_alive()
    assert list(base.iterdir()) == []


def test_kept_things_leave_when_their_time_is_up(base: Path) -> None:
    dead_agent(base, kept_things(time.time() - 1))
    later = dead_agent(base, kept_things(time.time() + 1000))
    report = reap(base)
    assert len(report.kept) == 3
    assert list(base.iterdir()) == [later]


def test_an_unknown_kind_stays_listed_until_somebody_knows_it(base: Path) -> None:
    directory = dead_agent(base, lambda ledger, _: ledger.intend("wormhole", {"name": "w"}, OWNER))
    report = reap(base)
    assert "'wormhole'" in reasons(report)
    assert directory.exists()

    undone: list[str] = []

    def collapse(entry: Entry, run: DeadRun) -> None:
        assert run.directory == directory
        undone.append(entry.what["name"])

    assert len(reap(base, cleanups={**CLEANUPS, "wormhole": collapse}).removed) == 1
    assert undone == ["w"]
    assert not directory.exists()


def test_one_failure_does_not_stop_the_rest(base: Path) -> None:
    def refuse(entry: Entry, run: DeadRun) -> None:
        raise AgentError("the device is busy")

    def act(ledger: Ledger, directory: Path) -> None:
        make_file(ledger, directory / "first")
        ledger.intend("nbd", {"name": "nbd0"}, OWNER)
        make_file(ledger, directory / "last")

    directory = dead_agent(base, act)
    other = dead_agent(base, act)
    report = reap(base, cleanups={**CLEANUPS, "nbd": refuse})
    assert len(report.removed) == 4
    assert {failure.directory for failure in report.failed} == {directory, other}
    assert [entry.kind for entry in listed(directory)] == ["nbd"], "so the next reaping has only this to do"


def test_a_survey_lists_the_living_and_the_dead(base: Path) -> None:
    dead = dead_agent(base, lambda ledger, directory: make_file(ledger, directory / "file"))
    (base / "unreadable").mkdir(mode=0o700)
    (base / "unreadable" / LEDGER_NAME).write_text("nonsense\n")
    with LivingAgent(base, lambda ledger, _: ledger.intend("nbd", {"name": "nbd0"}, OWNER)) as agent:
        before = snapshot(base)
        found = {run.directory: run for run in survey(base)}
        assert snapshot(base) == before
    assert [(run.is_alive, bool(run.problem)) for run in (found[dead], found[agent.directory])] == [
        (False, False),
        (True, False),
    ]
    unreadable = found[base / "unreadable"]
    assert unreadable.is_alive
    assert unreadable.problem
    contents = found[agent.directory].contents
    assert contents
    (entry,) = contents.entries.values()
    assert entry.what == {"name": "nbd0"}
    assert entry.owner.is_alive()
    assert time.time() - 60 < entry.since <= time.time()
