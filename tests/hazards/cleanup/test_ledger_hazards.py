"""Agents and reapers that are killed at the worst moment, or find the disk full, leave a ledger that is whole."""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import signal
from pathlib import Path

import pytest
from dead_agents import (
    OWNER,
    dead_agent,
    fork,
    join,
    listed,
    make_directory,
    make_file,
    needs_mount,
    process_of,
    reasons,
    run_directory,
    start_process,
)

from pytest_propolis.agent_api.agent_process import LOG_NAME
from pytest_propolis.errors import ResourceExhausted
from pytest_propolis.ledger import ledger as ledger_module
from pytest_propolis.ledger.cleanup import CLEANUPS, DeadRun
from pytest_propolis.ledger.entry import Entry
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger, read_ledger
from pytest_propolis.ledger.reaper import reap
from pytest_propolis.ledger.reaper_report import Report


def test_an_agent_killed_while_it_writes_leaves_nothing_unlisted(base: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()

    def churn(directory: Path, beat: int) -> None:
        ledger = Ledger.open(directory / LEDGER_NAME, run="r")
        alive: list[Entry] = []
        for number in range(1_000_000):
            place = images if number % 2 else directory
            alive.append(make_file(ledger, place / secrets.token_hex(8)))
            if number % 3 == 0:
                entry = alive.pop(0)
                Path(entry.what["path"]).unlink()
                ledger.gone(entry)
            os.write(beat, b".")

    for rounds in range(1, 16):
        directory = run_directory(base)
        beats, beat = os.pipe()
        pid = fork(lambda directory=directory, beat=beat: churn(directory, beat))  # type: ignore[misc]
        os.close(beat)
        for _ in range(rounds):
            assert os.read(beats, 1) == b"."
        os.kill(pid, signal.SIGKILL)
        assert join(pid) == -signal.SIGKILL
        os.close(beats)

        contents = read_ledger(directory / LEDGER_NAME)
        paths = {entry.what["path"] for entry in contents.entries.values()}
        present = {str(path) for path in [*images.iterdir(), *directory.iterdir()]} - {str(directory / LEDGER_NAME)}
        assert contents.damaged == 0
        assert present <= paths
        assert reasons(reap(base, roots=[images])) == ""
        assert list(base.iterdir()) == list(images.iterdir()) == []


def test_a_power_loss_that_leaves_zeros_at_the_end_costs_nothing(base: Path) -> None:
    directory = dead_agent(base, lambda ledger, directory: make_file(ledger, directory / "file"))
    with (directory / LEDGER_NAME).open("ab") as file:
        file.write(b"\x00" * 4096)
    assert len(reap(base).removed) == 1
    assert not directory.exists()


def test_a_reaper_killed_halfway_leaves_the_rest_to_the_next(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        make_file(ledger, directory / "first")
        ledger.intend("bomb", {}, OWNER)
        make_file(ledger, directory / "last")

    def explode(entry: Entry, run: DeadRun) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    directory = dead_agent(base, act)
    assert join(fork(lambda: reap(base, cleanups={**CLEANUPS, "bomb": explode}))) == -signal.SIGKILL
    assert [entry.kind for entry in listed(directory)] == ["file", "bomb"]
    report = reap(base, cleanups={**CLEANUPS, "bomb": lambda entry, run: None})
    assert len(report.removed) == 2
    assert not directory.exists()


def test_reapers_at_once_share_the_work(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        make_directory(ledger, directory / "disks")
        start_process(ledger)

    directories = {dead_agent(base, act) for _ in range(6)}
    processes = [process_of(listed(directory)[1]) for directory in directories]
    waiting, go = os.pipe()
    results, result = os.pipe()

    def reaper() -> None:
        os.close(go)
        os.read(waiting, 1)
        report = reap(base)
        assert reasons(Report(failed=report.failed)) == ""
        line = b" ".join([os.fsencode(path) for path in report.directories] + [b"%d" % len(report.removed)])
        os.write(result, line + b"\n")

    pids = [fork(reaper) for _ in range(3)]
    os.close(go)
    os.close(result)
    assert [join(pid) for pid in pids] == [0, 0, 0]
    with os.fdopen(results) as file:
        lines = [line.split() for line in file]
    assert sorted(path for line in lines for path in line[:-1]) == sorted(map(str, directories))
    assert sum(int(line[-1]) for line in lines) == 12
    assert not any(process.is_alive() for process in processes)
    assert list(base.iterdir()) == []
    os.close(waiting)


def test_a_ledger_removed_by_another_reaper_at_the_last_moment_is_gone(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = dead_agent(base, lambda ledger, _: None)
    open_existing = ledger_module._open_existing

    def lose_the_race(path: Path, mode: int) -> int:
        descriptor = open_existing(path, mode)
        monkeypatch.undo()
        assert reap(base).directories == [directory]
        return descriptor

    monkeypatch.setattr(ledger_module, "_open_existing", lose_the_race)
    with pytest.raises(FileNotFoundError):
        Ledger.adopt(directory / LEDGER_NAME)


@pytest.mark.parametrize("header", [None, b"", b'{"version":1,"run'])
def test_an_agent_that_died_while_starting_leaves_nothing(base: Path, header: bytes | None) -> None:
    directory = run_directory(base)
    if header is not None:
        (directory / LEDGER_NAME).write_bytes(header)
        (directory / LEDGER_NAME).chmod(0o600)
    assert [left.directory for left in reap(base).left] == [directory], "it may be starting just now"
    os.utime(directory, (0, 0))
    assert reap(base).directories == [directory]
    assert not directory.exists()


def test_the_log_of_an_agent_that_died_while_starting_goes_with_its_directory(base: Path) -> None:
    directory = run_directory(base)
    (directory / LOG_NAME).write_text("Traceback")
    os.utime(directory, (0, 0))
    assert reap(base).directories == [directory]
    assert not directory.exists()


def test_a_directory_without_a_ledger_but_with_content_is_not_ours_to_judge(base: Path) -> None:
    directory = run_directory(base)
    (directory / "file").write_text("content")
    os.utime(directory, (0, 0))
    assert "no ledger" in reasons(reap(base))
    assert (directory / "file").exists()


def fill_up(ledger: Ledger) -> None:
    """Intend until the disk is full, and see that this is said and costs nothing."""

    def intend_for_ever() -> None:
        while True:
            ledger.intend_many([("file", {"path": f"/{'x' * 100}"}, OWNER)] * 10)

    with pytest.raises(ResourceExhausted) as caught:
        intend_for_ever()
    assert str(ledger.path) in str(caught.value)
    assert caught.value.hint
    before = ledger.entries()
    assert list(read_ledger(ledger.path).entries.values()) == before
    assert ledger.path.read_bytes().endswith(b"\n")
    ledger.gone(*before)
    assert ledger.entries() == [], "cleaning up goes on"


def test_a_file_size_limit_leaves_the_ledger_whole(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        fill_up(ledger)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        entry = ledger.intend("file", {"path": str(directory / "x")}, OWNER)
        assert entry.id in read_ledger(ledger.path).entries

    dead_agent(base, act)
    assert list(base.iterdir()) != []


@needs_mount
def test_a_full_disk_leaves_the_ledger_whole(tmp_path: Path) -> None:
    clone_newns, ms_rec_private = 0x00020000, 0x44000
    libc = ctypes.CDLL(None, use_errno=True)

    def in_own_namespace() -> None:
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(None, b"/", None, ms_rec_private, None) == 0
        assert libc.mount(b"none", os.fsencode(tmp_path), b"tmpfs", 0, b"size=64k") == 0
        base = tmp_path / "base"
        base.mkdir()
        with Ledger.open(run_directory(base) / LEDGER_NAME, run="r") as ledger:
            ballast = tmp_path / "ballast"
            ballast.write_bytes(b"x" * 30_000)
            fill_up(ledger)
            ballast.unlink()
            entry = ledger.intend("file", {}, OWNER)
            assert entry.id in read_ledger(ledger.path).entries
        (tmp_path / "ballast").open("wb").close()
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "ballast").write_bytes(b"x" * 100_000)
        with pytest.raises(ResourceExhausted):
            Ledger.open(base / LEDGER_NAME, run="r")
        assert not (base / LEDGER_NAME).exists()

    assert join(fork(in_own_namespace)) == 0
