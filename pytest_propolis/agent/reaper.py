"""The reaper: undoes what dead agents' ledgers still list.

The next agent runs it when it starts, and ``propolis gc`` when a person asks. An agent is dead when its identity is
provably dead **and** nobody holds the lock of its ledger; every other one is left alone, and so is everything of
another user. Reaping is idempotent, and a reaper that is killed leaves the rest to the next one. It blocks, at most
`KILL_BOUND_S` seconds per process entry.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ..errors import AgentError, PropolisError
from .identity import ProcessIdentity, find_marked
from .ledger import LEDGER_NAME, Entry, Header, Ledger, LedgerContents, read_ledger
from .protocol import LOG_NAME

__all__ = [
    "KILL_BOUND_S",
    "UNDOERS",
    "DeadRun",
    "Failure",
    "Left",
    "Report",
    "RunSurvey",
    "Undoer",
    "reap",
    "survey",
]

KILL_BOUND_S: Final = 5.0
"""How long the reaper waits for killed processes to be gone, in seconds."""

_STARTING_S: Final = 60.0
_PATH_KINDS: Final = ("directory", "file", "socket")


@dataclass(frozen=True, slots=True)
class DeadRun:
    """What an undoer may need to know of the run whose agent died.

    :param directory: its run directory.
    :param entries: all that its ledger lists, in the order of creation.
    :param spared: those of them that are kept.
    :param roots: the directories, apart from the run directory, in which its paths may be removed.
    """

    directory: Path
    header: Header
    entries: tuple[Entry, ...]
    spared: tuple[Entry, ...]
    roots: tuple[Path, ...] = ()


Undoer = Callable[[Entry, DeadRun], None]
"""Undoes one entry, which may be undone already or may never have existed. It raises an `OSError` or a `PropolisError`
where it cannot or must not; the entry then stays in the ledger."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that could not be undone, and why.

    :param entry: which one, or None for the run directory itself.
    """

    directory: Path
    entry: Entry | None
    reason: str


@dataclass(frozen=True, slots=True)
class Left:
    """A run directory that was left alone as a whole, and why."""

    directory: Path
    reason: str


@dataclass(slots=True)
class Report:
    """What the reaper did, or with `dry_run` would try.

    :param removed: entries undone, in that order.
    :param strays: processes that carried a run's mark but were not listed, ended.
    :param directories: run directories removed.
    :param kept: entries that are to survive their owner.
    :param failed: what is still there although it should not be.
    :param left: runs that were not touched: alive, another user's, or unreadable.
    """

    dry_run: bool = False
    removed: list[Entry] = field(default_factory=list)
    strays: list[ProcessIdentity] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunSurvey:
    """One agent's run directory, as `survey` found it.

    :param contents: its ledger, or None when that cannot be read.
    :param is_alive: whether its agent lives, or cannot be told dead.
    :param problem: why the ledger cannot be read.
    """

    directory: Path
    contents: LedgerContents | None
    is_alive: bool
    problem: str | None = None


def survey(base: Path) -> tuple[RunSurvey, ...]:
    """All run directories below `base` with their ledgers, living and dead, by name. Nothing is locked or changed.

    Whether the client that holds an entry lives is told by ``entry.owner.is_alive()``.
    """
    return tuple(_survey_run(directory) for directory in _directories(base))


def reap(
    base: Path,
    *,
    roots: Sequence[Path] = (),
    undoers: Mapping[str, Undoer] | None = None,
    include_kept: bool = False,
    dry_run: bool = False,
) -> Report:
    """Undo what this user's dead agents left below `base`, newest first, and remove their run directories.

    Two reapers at once are safe: each run is undone by one of them, and the other reports it as left.

    :param roots: directories outside the run directories in which listed paths may be removed.
    :param undoers: by kind, what undoes it; default `UNDOERS`. A kind that is not there fails.
    :param include_kept: also what is kept and has not expired.
    :param dry_run: change nothing and signal nobody. The report says what would be tried: refusals are not foreseen.
    """
    report = Report(dry_run=dry_run)
    for directory in _directories(base):
        if reason := _not_ours(directory):
            report.left.append(Left(directory, reason))
            continue
        try:
            with Ledger.adopt(directory / LEDGER_NAME) as ledger:
                _Reaping(ledger, tuple(roots), UNDOERS if undoers is None else undoers, report).run(include_kept)
        except FileNotFoundError:
            _reap_stillborn(directory, report, "it has no ledger")
        except AgentError as error:
            _reap_stillborn(directory, report, error.message)
    return report


class _Reaping:
    """The reaping of one run, whose ledger is locked."""

    def __init__(self, ledger: Ledger, roots: tuple[Path, ...], undoers: Mapping[str, Undoer], report: Report) -> None:
        self.ledger = ledger
        self.directory = ledger.path.parent
        self.roots = roots
        self.undoers = undoers
        self.report = report

    def run(self, include_kept: bool) -> None:
        header = self.ledger.header
        if header.uid != os.geteuid():
            self.report.left.append(Left(self.directory, f"its agent ran as uid {header.uid}"))
        elif header.agent.is_alive():
            self.report.left.append(Left(self.directory, f"its agent (pid {header.agent.pid}) is not provably dead"))
        else:
            self._undo_all(include_kept)

    def _undo_all(self, include_kept: bool) -> None:
        entries = tuple(self.ledger.entries())
        spared = () if include_kept else _spared(entries, now=time.time())
        run = DeadRun(self.directory, self.ledger.header, entries, spared, self.roots)
        self.report.kept += spared
        outcomes = [self._undo(entry, run) for entry in reversed(entries) if entry not in spared]
        outcomes.append(self._end_strays(run))
        if all(outcomes) and not spared:
            self._remove_directory()

    def _undo(self, entry: Entry, run: DeadRun) -> bool:
        undoer = self.undoers.get(entry.kind)
        if undoer is None:
            return self._failed(entry, f"nothing here knows how to undo a {entry.kind!r}")
        try:
            if not self.report.dry_run:
                undoer(entry, run)
                self.ledger.gone(entry)
        except (OSError, PropolisError) as error:
            return self._failed(entry, _reason(error))
        self.report.removed.append(entry)
        return True

    def _end_strays(self, run: DeadRun) -> bool:
        try:
            self.report.strays += _strays(run) if self.report.dry_run else _end(lambda: _strays(run))
        except (OSError, PropolisError) as error:
            return self._failed(None, _reason(error))
        return True

    def _remove_directory(self) -> None:
        try:
            if not self.report.dry_run:
                _remove_run_directory(self.directory)
        except (OSError, PropolisError) as error:
            self._failed(None, _reason(error))
        else:
            self.report.directories.append(self.directory)

    def _failed(self, entry: Entry | None, reason: str) -> bool:
        self.report.failed.append(Failure(self.directory, entry, reason))
        return False


def _spared(entries: Sequence[Entry], *, now: float) -> tuple[Entry, ...]:
    """Those kept, and the directories that kept things are in."""
    kept = [Path(entry.what["path"]) for entry in entries if entry.is_kept(now=now) and "path" in entry.what]

    def holds_kept(entry: Entry) -> bool:
        directory = entry.what.get("path") if entry.kind == "directory" else None
        return directory is not None and any(path.is_relative_to(directory) for path in kept)

    return tuple(entry for entry in entries if entry.is_kept(now=now) or holds_kept(entry))


# Processes


def _undo_process(entry: Entry, run: DeadRun) -> None:
    """End the process by its identity, and whatever carries the entry's id: it may have been started without its pid
    being written down, and it may have started others."""
    recorded = ProcessIdentity.from_facts(entry.what)

    def remaining() -> list[ProcessIdentity]:
        marked = find_marked(entry.id)
        return [recorded, *marked] if recorded and recorded.is_alive() else marked

    _end(remaining)


def _strays(run: DeadRun) -> list[ProcessIdentity]:
    """Processes that carry the run's mark, apart from those that belong to a process entry or to something kept."""
    listed = [entry for entry in run.entries if entry.kind == "process" or entry in run.spared]
    # What carries only the bare mark could belong to something kept; what carries the id of another entry does not.
    mark = f"{run.header.mark}-" if run.spared else run.header.mark
    return [process for process in find_marked(mark) if not any(_belongs(process, entry) for entry in listed)]


def _belongs(process: ProcessIdentity, entry: Entry) -> bool:
    return ProcessIdentity.from_facts(entry.what) == process or process.carries(entry.id)


def _end(remaining: Callable[[], list[ProcessIdentity]]) -> list[ProcessIdentity]:
    """Kill until none is left: one that is being killed may just have started another."""
    deadline = time.monotonic() + KILL_BOUND_S
    ended: list[ProcessIdentity] = []
    while victims := remaining():
        for process in victims:
            process.kill()
        late = [process for process in victims if not process.wait_gone(deadline - time.monotonic())]
        if late or time.monotonic() > deadline:
            raise AgentError(
                f"process {(late or victims)[0].pid} still runs {KILL_BOUND_S:.0f} s after it was killed",
                hint="it may be waiting for a device: look at its state with `ps`, and run `propolis gc` again",
            )
        ended += victims
    return ended


# Paths


def _undo_path(entry: Entry, run: DeadRun) -> None:
    """Remove the path if it is ours and strictly inside the run directory or an allowed root."""
    path = _path_of(entry)
    directory = _spellings(run.directory)
    if path in directory:
        return  # removed last, when nothing is left that needs the ledger in it
    if any(spelling.is_relative_to(path) for spelling in directory):
        raise _refusal(path, "holds the run directory")
    roots = [spelling for root in (run.directory, *run.roots) for spelling in _spellings(root)]
    with suppress(FileNotFoundError), _parent_of(path, roots) as parent:
        found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) and entry.kind != "directory":
            raise _refusal(path, f"is a directory, not a {entry.kind}")
        _require_unmounted(path)
        _remove(path, parent)


def _spellings(directory: Path) -> tuple[Path, Path]:
    """The ways in which a ledger may have written a directory that this process was given."""
    return directory.absolute(), directory.resolve()


def _path_of(entry: Entry) -> Path:
    path = Path(entry.what.get("path", ""))
    if not path.is_absolute() or ".." in path.parts:
        raise AgentError(f"{entry.kind} {entry.id} has no absolute path", hint="its ledger is damaged: look into it")
    return path


def _refusal(path: Path, why: str) -> AgentError:
    return AgentError(f"{path} is not removed: it {why}", hint="look at it, and remove it by hand if it is yours")


@contextmanager
def _parent_of(path: Path, roots: Sequence[Path]) -> Iterator[int]:
    """A descriptor of the directory that the path is in, reached from its root without following a symbolic link."""
    root = next((root for root in roots if root in path.parents), None)
    if root is None:
        raise _refusal(path, "is neither in the run directory nor in an allowed root")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in path.relative_to(root).parts[:-1]:
            descriptor = _descend(descriptor, part, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _descend(parent: int, name: str, path: Path) -> int:
    try:
        descriptor = _open_no_link(name, parent)
    except NotADirectoryError:
        raise _refusal(path, f"is reached through {name!r}, which is a symbolic link or no directory") from None
    os.close(parent)
    return descriptor


def _open_no_link(name: str | Path, parent: int | None = None) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _remove(path: Path, parent: int) -> None:
    """Remove what has this name in the open directory; of a symbolic link, the link."""
    found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
    if found.st_uid != os.geteuid():
        raise _refusal(path, f"belongs to uid {found.st_uid}")
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(path.name, dir_fd=parent)
        return
    _empty(path, _open_no_link(path.name, parent))
    os.rmdir(path.name, dir_fd=parent)


def _empty(path: Path, descriptor: int, *, last: str = "") -> None:
    """Remove everything in an open directory, the file called `last` at the end, and close the descriptor."""
    try:
        if os.fstat(descriptor).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(descriptor, stat.S_IRWXU)
        for name in sorted(os.listdir(descriptor), key=lambda name: (name == last, name)):
            with suppress(FileNotFoundError):
                _remove(path / name, descriptor)
    finally:
        os.close(descriptor)


def _require_unmounted(path: Path) -> None:
    """Refuse where something is mounted at or below the path, so that nothing is removed through a mount."""
    if mounted := _mounted_in(path):
        raise _refusal(path, f"has a file system mounted at {mounted}")


def _mounted_in(path: Path) -> str | None:
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
    except OSError:
        return str(path) if path.is_mount() else None
    # Field 5 (proc_pid_mountinfo(5)) has octal escapes for the characters that would break the line into fields.
    here = os.fsencode(path.resolve()).replace(b"\\", rb"\134")
    for character, escape in ((b" ", rb"\040"), (b"\t", rb"\011"), (b"\n", rb"\012")):
        here = here.replace(character, escape)
    points = (line.split(b" ")[4] for line in lines if line)
    return next((os.fsdecode(point) for point in points if (point + b"/").startswith(here + b"/")), None)


UNDOERS: Final[Mapping[str, Undoer]] = MappingProxyType(
    {"process": _undo_process} | dict.fromkeys(_PATH_KINDS, _undo_path)
)
"""What undoes each kind that the reaper knows by itself. Add to a copy: ``{**UNDOERS, "nbd": undo_nbd}``."""


# Run directories


def _directories(base: Path) -> list[Path]:
    try:
        with os.scandir(base) as found:
            return sorted(base.absolute() / item.name for item in found if item.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _not_ours(directory: Path) -> str | None:
    """Why nothing in the directory is to be believed; its ledger is as trustworthy as whoever can write there."""
    for path in (directory, directory / LEDGER_NAME):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return _reason(error)
        if found.st_uid != os.geteuid():
            return f"{path} belongs to uid {found.st_uid}"
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others may write to {path}"
    return None


def _remove_run_directory(directory: Path) -> None:
    _require_unmounted(directory)
    # The ledger goes last: a reaper that is killed here leaves it to the next one.
    _empty(directory, _open_no_link(directory), last=LEDGER_NAME)
    directory.rmdir()


def _is_stillborn(directory: Path) -> bool:
    # The log is made by whoever starts the agent, before there is an agent.
    if {path.name for path in directory.iterdir()} - {LEDGER_NAME, LOG_NAME}:
        return False
    if time.time() - directory.stat().st_mtime < _STARTING_S:
        return False
    try:
        with (directory / LEDGER_NAME).open("rb") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return b"\n" not in ledger.read()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _survey_run(directory: Path) -> RunSurvey:
    try:
        contents = read_ledger(directory / LEDGER_NAME)
    except (OSError, AgentError) as error:
        return RunSurvey(directory, None, is_alive=True, problem=_reason(error))
    return RunSurvey(directory, contents, contents.header.agent.is_alive())


def _reap_stillborn(directory: Path, report: Report, reason: str) -> None:
    """Remove the directory of an agent that died before its ledger had a header: nothing can have been created."""
    try:
        stillborn = _is_stillborn(directory)
        if stillborn and not report.dry_run:
            _remove_run_directory(directory)
    except FileNotFoundError:
        return
    except (OSError, PropolisError) as error:
        report.failed.append(Failure(directory, None, _reason(error)))
    else:
        if stillborn:
            report.directories.append(directory)
        else:
            report.left.append(Left(directory, reason))


def _reason(error: OSError | PropolisError) -> str:
    return error.message if isinstance(error, PropolisError) else str(error)
