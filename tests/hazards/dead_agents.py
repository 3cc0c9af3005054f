"""Dead and running agents with resources, for tests of their cleanup."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_propolis.ledger.entry import TAG_VARIABLE, Entry, Owner
from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.ledger import LEDGER_NAME, Ledger, read_ledger
from pytest_propolis.ledger.reaper_report import Report

__all__ = [
    "OWNER",
    "STRANGER",
    "Act",
    "LivingAgent",
    "Unprivileged",
    "can_give_files_away",
    "dead_agent",
    "fork",
    "intend_path",
    "join",
    "listed",
    "make_directory",
    "make_file",
    "needs_mount",
    "process_of",
    "reasons",
    "run_directory",
    "snapshot",
    "spawn",
    "start_process",
]

OWNER = Owner("gw0", ProcessIdentity.current())
STRANGER = 54321

Act = Callable[[Ledger, Path], object]
Unprivileged = Callable[[Callable[[Path], None]], None]


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


needs_mount = pytest.mark.skipif(
    not can_mount(), reason="needs root, which can mount a file system in a namespace of its own"
)


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
    """An agent that runs until it is stopped."""

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


def spawn(tag: str) -> ProcessIdentity:
    process = subprocess.Popen(["sleep", "1000"], env=os.environ | {TAG_VARIABLE: tag})
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
