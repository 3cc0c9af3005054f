"""What dead agents leave is undone, and nothing else is, whoever was killed when and whoever interferes."""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from pytest_propolis.agent import ledger as ledger_module
from pytest_propolis.agent.identity import ProcessIdentity, find_marked
from pytest_propolis.agent.ledger import LEDGER_NAME, MARK_VARIABLE, Entry, Ledger, Owner, read_ledger
from pytest_propolis.agent.protocol import LOG_NAME
from pytest_propolis.agent.reaper import UNDOERS, DeadRun, Report, reap, survey
from pytest_propolis.errors import AgentError, ResourceExhausted

OWNER = Owner("gw0", ProcessIdentity.current())
STRANGER = 54321

Act = Callable[[Ledger, Path], object]


def can_give_files_away(directory: Path) -> bool:
    probe = directory / "probe"
    probe.touch()
    try:
        os.chown(probe, STRANGER, STRANGER)
    except PermissionError:
        return False
    finally:
        probe.unlink()
    return True


def can_mount() -> bool:
    command = ("unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt")
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="cannot mount a file system in a namespace of its own")


def fork(act: Callable[[], object]) -> int:
    """Run it in a child process; its exit status says whether it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def join(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_directory(base: Path) -> Path:
    directory = base / secrets.token_hex(4)
    directory.mkdir(mode=0o700)
    return directory


def dead_agent(base: Path, act: Act) -> Path:
    """The run directory of an agent that did this and died without cleaning up."""
    directory = run_directory(base)

    def agent() -> None:
        act(Ledger.open(directory / LEDGER_NAME, run="the-run"), directory)

    assert join(fork(agent)) == 0
    return directory


@dataclass
class LivingAgent:
    """An agent that lives until it is told to end."""

    base: Path
    act: Act
    directory: Path = field(init=False)
    pid: int = field(init=False)

    def __enter__(self) -> LivingAgent:
        self.directory = run_directory(self.base)
        ready, set_ready = os.pipe()
        waiting, self.release = os.pipe()

        def agent() -> None:
            os.close(self.release)
            self.act(Ledger.open(self.directory / LEDGER_NAME, run="the-living-run"), self.directory)
            os.write(set_ready, b"r")
            os.read(waiting, 1)

        self.pid = fork(agent)
        os.close(set_ready)
        os.close(waiting)
        assert os.read(ready, 1) == b"r"
        os.close(ready)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.release)
        assert join(self.pid) == 0


def listed(directory: Path) -> list[Entry]:
    return list(read_ledger(directory / LEDGER_NAME).entries.values())


def intend_path(ledger: Ledger, kind: str, path: Path) -> Entry:
    return ledger.intend(kind, {"path": str(path)}, OWNER)


def make_file(ledger: Ledger, path: Path, kind: str = "file") -> Entry:
    entry = intend_path(ledger, kind, path)
    path.write_text("content")
    return ledger.live(entry)


def make_directory(ledger: Ledger, path: Path) -> Entry:
    entry = intend_path(ledger, "directory", path)
    path.mkdir()
    (path / "below").mkdir()
    (path / "below" / "disk.img").write_text("content")
    return ledger.live(entry)


def spawn(mark: str) -> ProcessIdentity:
    process = subprocess.Popen(["sleep", "1000"], env=os.environ | {MARK_VARIABLE: mark})
    process.returncode = 0  # It outlives this process, as it should here: no warning.
    return ProcessIdentity.of(process.pid)


def start_process(ledger: Ledger) -> Entry:
    entry = ledger.intend("process", {"name": "sleep"}, OWNER)
    return ledger.live(entry, **spawn(entry.id).facts())


def process_of(entry: Entry) -> ProcessIdentity:
    identity = ProcessIdentity.from_facts(entry.what)
    assert identity
    return identity


def snapshot(base: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns) for path in base.rglob("*")
    }


def reasons(report: Report) -> str:
    return "\n".join([failure.reason for failure in report.failed] + [left.reason for left in report.left])


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of run directories; processes that were started in the test end with it."""
    token = secrets.token_hex(16)
    monkeypatch.setenv("PROPOLIS_TEST_TOKEN", token)
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    yield base
    for process in find_marked(token):
        process.kill()


Unprivileged = Callable[[Callable[[Path], None]], None]


@pytest.fixture
def unprivileged() -> Iterator[Unprivileged]:
    """Runs a check as a user without privileges, in a directory of its own: another user, where it can become one."""
    with tempfile.TemporaryDirectory() as name:
        can_change = can_give_files_away(Path(name))

        def run(check: Callable[[Path], None]) -> None:
            def drop_and_check() -> None:
                if can_change:
                    os.chown(name, STRANGER, STRANGER)
                    os.setgroups([])
                    os.setresgid(STRANGER, STRANGER, STRANGER)
                    os.setresuid(STRANGER, STRANGER, STRANGER)
                check(Path(name))

            assert join(fork(drop_and_check)) == 0

        yield run


# A dead agent's things go


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
    (process,) = find_marked(entry.id)
    report = reap(base)
    assert [removed.id for removed in report.removed] == [entry.id]
    assert not process.is_alive()


def test_a_child_of_a_listed_process_ends_with_it(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        entry = start_process(ledger)
        spawn(entry.id)

    directory = dead_agent(base, act)
    family = find_marked(listed(directory)[0].id)
    assert len(family) == 2
    reap(base)
    assert not any(process.is_alive() for process in family)


def test_a_process_that_only_carries_the_runs_mark_is_a_stray_and_ends(base: Path) -> None:
    def act(ledger: Ledger, directory: Path) -> None:
        entry = ledger.intend("process", {}, OWNER)
        spawn(entry.id)
        ledger.gone(entry)

    directory = dead_agent(base, act)
    strays = find_marked(read_ledger(directory / LEDGER_NAME).header.mark)
    assert len(strays) == 1
    assert reap(base, dry_run=True).strays == strays
    assert strays[0].is_alive()
    assert reap(base).strays == strays
    assert not strays[0].is_alive()


@pytest.mark.parametrize("bare", [False, True])
def test_a_process_that_carries_only_the_bare_mark_ends_unless_something_is_kept(base: Path, bare: bool) -> None:
    """It could be a part of what is kept."""

    def act(ledger: Ledger, directory: Path) -> None:
        spawn(ledger.header.mark)
        if not bare:
            ledger.keep(make_file(ledger, directory / "disk"), None, reason="test_x failed")

    directory = dead_agent(base, act)
    (process,) = find_marked(read_ledger(directory / LEDGER_NAME).header.mark)
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
        pytest.skip("cannot become another user")
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


# What must not be touched


def test_a_living_run_is_not_touched(base: Path) -> None:
    with LivingAgent(base, lambda ledger, directory: make_directory(ledger, directory / "d")) as agent:
        before = snapshot(base)
        report = reap(base, include_kept=True)
        assert snapshot(base) == before
    assert (report.removed, report.failed) == ([], [])
    assert [left.directory for left in report.left] == [agent.directory]


def test_an_agent_that_looks_dead_but_holds_its_ledger_is_alive(base: Path) -> None:
    """As seen from another machine or container that shares the directory: there the pid says nothing."""
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
        pytest.skip("cannot make files of another user")

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
        pytest.skip("cannot make files of another user")
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
from pytest_propolis.agent.protocol import LOG_NAME
from pytest_propolis.agent.reaper import reap
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


# What is kept


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
    (kept,) = find_marked(listed(directory)[0].id)
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


# What the reaper does not know


def test_an_unknown_kind_stays_listed_until_somebody_knows_it(base: Path) -> None:
    directory = dead_agent(base, lambda ledger, _: ledger.intend("wormhole", {"name": "w"}, OWNER))
    report = reap(base)
    assert "'wormhole'" in reasons(report)
    assert directory.exists()

    undone: list[str] = []

    def collapse(entry: Entry, run: DeadRun) -> None:
        assert run.directory == directory
        undone.append(entry.what["name"])

    assert len(reap(base, undoers={**UNDOERS, "wormhole": collapse}).removed) == 1
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
    report = reap(base, undoers={**UNDOERS, "nbd": refuse})
    assert len(report.removed) == 4
    assert {failure.directory for failure in report.failed} == {directory, other}
    assert [entry.kind for entry in listed(directory)] == ["nbd"], "so the next reaping has only this to do"


# Deaths at the worst moment


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
    assert join(fork(lambda: reap(base, undoers={**UNDOERS, "bomb": explode}))) == -signal.SIGKILL
    assert [entry.kind for entry in listed(directory)] == ["file", "bomb"]
    report = reap(base, undoers={**UNDOERS, "bomb": lambda entry, run: None})
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


# A full disk


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


# Looking


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
