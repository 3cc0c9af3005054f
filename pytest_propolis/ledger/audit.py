"""Leak audit: find resources of a run that no running agent accounts for, by inspecting the machine itself.

The audit changes nothing. Resources that a running agent keeps on purpose are accounted for. Everything else that
carries the run's id or a mark of its agents is a leak: processes, files and sockets, mounts, loop and NBD devices, and
ZFS datasets.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..agent_api.messages import LOG_NAME, SOCKET_NAME
from ..errors import HostError
from ..operating_system.registry import system
from ..storage.files import files_below, require_trusted
from .disk_directories import OWNER_NAME, directories_of
from .entry import AGENT_OWNER, KEPT_OWNER, MARK_VARIABLE, Entry, command_line_mark
from .identity import ProcessIdentity, find_marked
from .ledger import LEDGER_NAME
from .rendezvous import SUFFIX
from .survey import RunSurvey, survey

__all__ = ["Leak", "audit", "wait_settled"]

_OWN_FILES: Final = frozenset({LEDGER_NAME, LOG_NAME, SOCKET_NAME, OWNER_NAME})
_ZFS_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.1
_COMMAND_LENGTH: Final = 120


@dataclass(frozen=True, slots=True)
class Leak:
    """A resource that should no longer exist.

    :param kind: ``process``, ``file``, ``directory``, ``socket``, ``entry``, ``mount``, ``loop device``, ``NBD device``
        or ``ZFS dataset``.
    :param what: a readable description of the resource.
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


def wait_settled(base: Path, run: str, *, timeout_s: float) -> None:
    """Block until every agent of the run has exited or owns only kept resources, or until the timeout."""
    deadline = time.monotonic() + timeout_s
    while busy := [agent for agent in _agents(base, run) if agent.is_alive and not _has_settled(agent)]:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or busy[0].contents is None:
            return
        busy[0].contents.header.agent.wait_gone(min(remaining_s, _LOOK_S))


def audit(base: Path, run: str, *, disks: Path | None = None, block_devices: Path | None = None) -> list[Leak]:
    """Return the leaks of a run. Call it after all clients have exited and the agents have had time to do so.

    :param base: the parent of the agents' run directories.
    :param run: the run's id.
    :param disks: the parent of the agents' disk directories.
    :param block_devices: the kernel's directory of block devices; None for the host's, if it has one.
    """
    agents = _agents(base, run)
    words = (f"{MARK_VARIABLE}={run}.", command_line_mark(run))
    leaks = [leak for agent in agents for leak in _left_by(agent)]
    if not agents and (rendezvous := base / f"{run}{SUFFIX}").exists():
        leaks.append(Leak("file", str(rendezvous)))
    if disks is not None:
        explained = {agent.directory.name for agent in agents}
        leaks += [Leak("directory", str(place)) for place in directories_of(disks, run) if place.name not in explained]
    leaks += [*_processes(words, agents), *_sockets(agents, base / run), *_mounts(run)]
    described = block_devices or system().host.block_devices
    return [*leaks, *(_devices(described, run) if described else ()), *_datasets(run)]


def _agents(base: Path, run: str) -> list[RunSurvey]:
    return [found for found in survey(base) if found.directory.name.startswith(f"{run}-")]


def _is_kept(entry: Entry) -> bool:
    return entry.owner.client == KEPT_OWNER


def _is_explained(entry: Entry) -> bool:
    """Return whether an agent that keeps resources may legitimately own the entry."""
    return entry.owner.client in (KEPT_OWNER, AGENT_OWNER)


def _keeps(agent: RunSurvey) -> bool:
    """Return whether an agent is still running because it keeps resources."""
    return agent.is_alive and agent.contents is not None and any(map(_is_kept, agent.contents.entries.values()))


def _has_settled(agent: RunSurvey) -> bool:
    return _keeps(agent) and all(map(_is_explained, _entries(agent)))


def _left_by(agent: RunSurvey) -> Iterator[Leak]:
    if agent.contents is None:
        yield Leak("directory", f"{agent.directory}: {agent.problem}")
        return
    entries = agent.contents.entries.values()
    if not _keeps(agent):
        state = "its agent lives" if agent.is_alive else "its agent is dead"
        yield Leak("directory", f"{agent.directory} ({state})")
        if agent.is_alive:
            yield Leak("process", f"{agent.contents.header.agent.pid} (the agent itself)")
    for entry in entries:
        if not (_keeps(agent) and _is_explained(entry)):
            what = entry.what.get("path") or entry.what.get("pid") or entry.id
            yield Leak("entry", f"of a {entry.kind}: {what}, of {entry.owner.client}")
    yield from _unlisted_files(agent.directory, entries)
    if (disks := agent.contents.header.disk_directory) and _keeps(agent):
        inside = [entry for entry in entries if entry.what.get("path") != disks]
        yield from _unlisted_files(Path(disks), inside)


def _unlisted_files(directory: Path, entries: Iterable[Entry]) -> Iterator[Leak]:
    """Yield files that are neither listed, nor in a listed directory, nor the agent's own."""
    listed = [Path(entry.what["path"]) for entry in entries if "path" in entry.what]
    for path in sorted(files_below(directory)):
        own = path.parent == directory and path.name in _OWN_FILES
        if not own and not any(path.is_relative_to(place) for place in listed):
            yield Leak("socket" if path.is_socket() else "file", str(path))


def _processes(words: Iterable[str], agents: Iterable[RunSurvey]) -> Iterator[Leak]:
    explained = [entry for agent in agents if _keeps(agent) for entry in _entries(agent) if _is_kept(entry)]
    known = {ProcessIdentity.from_facts(entry.what) for entry in explained}
    found = {process for word in words for process in find_marked(word)}
    for process in sorted(found, key=lambda process: process.pid):
        if process not in known and not any(process.carries(entry.id) for entry in explained):
            yield Leak("process", f"{process.pid} ({_command(process.pid)})")


def _entries(agent: RunSurvey) -> Iterable[Entry]:
    return agent.contents.entries.values() if agent.contents else ()


def _command(pid: int) -> str:
    return _command_line(pid)[:_COMMAND_LENGTH] or "gone meanwhile"


def _command_line(pid: int) -> str:
    return system().processes.command_line(pid).decode(errors="replace").replace("\0", " ").strip()


def _sockets(agents: Iterable[RunSurvey], prefix: Path) -> Iterator[Leak]:
    """Yield UNIX sockets bound to a path of the run, even if the path has been unlinked.

    Any user can bind an abstract socket name and can read the run's id from process command lines. Only names in the
    base directory count, because no other user can create those.

    :param prefix: the common prefix of the run's directories.
    """
    expected = {str(agent.directory / SOCKET_NAME) for agent in agents if _keeps(agent)}
    kept = [f"{path}/" for agent in agents if _keeps(agent) for path in _kept_paths(agent)]
    for name in sorted(set(system().host.bound_sockets()) - expected):
        if name.startswith(f"{prefix.absolute()}-") and not name.startswith(tuple(kept)):
            yield Leak("socket", name)


def _kept_paths(agent: RunSurvey) -> Iterator[str]:
    return (entry.what["path"] for entry in _entries(agent) if _is_kept(entry) and "path" in entry.what)


def _mounts(run: str) -> Iterator[Leak]:
    for mount in system().host.mounts() or ():
        if run in mount.record and _is_out_of_others_reach(mount.point):
            yield Leak("mount", str(mount.point))


def _is_out_of_others_reach(path: Path) -> bool:
    """Whether no other user can have made what lies at a path.

    Users mount file systems of their own (FUSE), and have loop devices set up over their files (udisks), with the run's
    word in the name.
    """
    parent = next(place for place in path.parents if place.is_dir())
    try:
        require_trusted(parent)
    except (HostError, OSError):
        return False
    return True


def _devices(block_devices: Path, run: str) -> Iterator[Leak]:
    for backing in sorted(block_devices.glob("loop*/loop/backing_file")):
        if run in (file := _text(backing).strip()) and _is_out_of_others_reach(Path(file)):
            yield Leak("loop device", f"/dev/{backing.parents[1].name} on {file}")
    for backend in sorted(block_devices.glob("nbd*/backend")):
        if run in (name := _text(backend).strip()):
            yield Leak("NBD device", f"/dev/{backend.parent.name} on {name}")
    for pid in sorted(block_devices.glob("nbd*/pid")):
        if (server := _text(pid).strip()).isdigit() and run in (command := _command_line(int(server))):
            yield Leak("NBD device", f"/dev/{pid.parent.name} of {command[:_COMMAND_LENGTH]}")


def _datasets(run: str) -> Iterator[Leak]:
    if zfs := shutil.which("zfs"):
        command = [zfs, "list", "-H", "-o", "name", "-t", "all"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ZFS_TIMEOUT_S).stdout
        except (OSError, subprocess.TimeoutExpired):
            return
        yield from (Leak("ZFS dataset", name) for name in listed.splitlines() if run in name)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
