"""Leak audit: find resources of a run that no running agent accounts for, by inspecting the machine itself.

The audit changes nothing. Resources that a running agent keeps on purpose are accounted for. Everything else that
carries the run's id or a tag of its agents is a leak: processes, files and sockets, mounts, loop and NBD devices, and
ZFS datasets.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ..agent_api.agent_process import LOG_NAME, SOCKET_NAME
from ..errors import HostError
from ..operating_system.registry import system
from ..storage.files import files_below, require_trusted
from .disk_directories import OWNER_NAME, directories_of
from .entry import AGENT_OWNER, KEPT_OWNER, TAG_VARIABLE, Entry, command_line_tag
from .identity import ProcessIdentity, find_tagged
from .ledger import LEDGER_NAME
from .rendezvous import SUFFIX
from .survey import RunSurvey, survey

__all__ = ["Leak", "audit", "wait_until_idle"]

_OWN_FILES: Final = frozenset({LEDGER_NAME, LOG_NAME, SOCKET_NAME, OWNER_NAME})
_ZFS_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.1
_COMMAND_LENGTH: Final = 120


class Leak(msgspec.Struct, frozen=True):
    """A resource that should no longer exist.

    :param kind: ``process``, ``file``, ``directory``, ``socket``, ``entry``, ``mount``, ``loop device``, ``NBD device``
        or ``ZFS dataset``.
    :param what: a readable description of the resource.
    """

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


def wait_until_idle(base: Path, run: str, *, timeout_s: float, clients: str = "") -> None:
    """Block until every agent of the run has exited or owns only what it may keep, or until the timeout.

    :param clients: as for `audit`.
    """
    deadline = time.monotonic() + timeout_s
    while busy := [agent for agent in _agents(base, run, clients) if agent.is_alive and not agent.is_idle]:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or busy[0].found.contents is None:
            return
        busy[0].found.contents.header.agent.wait_gone(min(remaining_s, _LOOK_S))


def audit(
    base: Path, run: str, *, clients: str = "", disks: Path | None = None, block_devices: Path | None = None
) -> list[Leak]:
    """Return the leaks of a run. Call it after all clients have exited and the agents have had time to do so.

    :param base: the parent of the agents' run directories.
    :param run: the run's id, or that of an agent that lingers.
    :param clients: what the names of the run's clients begin with: others may use an agent that lingers.
    :param disks: the parent of the agents' disk directories.
    :param block_devices: the kernel's directory of block devices; None for the host's, if it has one.
    """
    leaks, agents = _scan(base, run, clients, disks, block_devices)
    if leaks and any(agent.lingers for agent in agents):
        # Standby forks and VMs of other runs may appear or disappear between reading a ledger and the search.
        again, _ = _scan(base, run, clients, disks, block_devices)
        leaks = [leak for leak in leaks if leak in again]
    return leaks


def _scan(
    base: Path, run: str, clients: str, disks: Path | None, block_devices: Path | None
) -> tuple[list[Leak], list[_Agent]]:
    agents = _agents(base, run, clients)
    tags = (f"{TAG_VARIABLE}={run}.", command_line_tag(run))
    leaks = [leak for agent in agents for leak in _left_by(agent)]
    if not agents and (rendezvous := base / f"{run}{SUFFIX}").exists():
        leaks.append(Leak("file", str(rendezvous)))
    if disks is not None:
        explained = {agent.directory.name for agent in agents}
        leaks += [Leak("directory", str(path)) for path in directories_of(disks, run) if path.name not in explained]
    leaks += [*_processes(tags, agents), *_sockets(agents, base / run), *_mounts(run)]
    described = block_devices or system().host.block_devices
    return [*leaks, *(_devices(described, run) if described else ()), *_datasets(run, agents)], agents


class _Agent(msgspec.Struct, frozen=True):
    """An agent of the run, and the resources that it may have without clients of the run.

    :param clients: what the names of the run's clients begin with; an agent that lingers may have clients of other
        runs.
    """

    found: RunSurvey
    clients: str

    @property
    def directory(self) -> Path:
        return self.found.directory

    @property
    def is_alive(self) -> bool:
        return self.found.is_alive and self.found.contents is not None

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self.found.contents.entries.values()) if self.found.contents else ()

    @property
    def lingers(self) -> bool:
        """Whether it is still running to serve the next run, without clients of this run."""
        return self.is_alive and self.found.contents is not None and self.found.contents.header.lingers

    @property
    def stays(self) -> bool:
        """Whether it is still running because it keeps resources, or lingers."""
        return self.lingers or (self.is_alive and any(map(_is_kept, self.entries)))

    @property
    def is_idle(self) -> bool:
        return self.stays and all(map(self.explains, self.entries))

    def explains(self, entry: Entry) -> bool:
        """Return whether the agent may legitimately have the entry, as long as it stays."""
        if self.lingers:
            return not entry.owner.client.startswith(self.clients)
        return entry.owner.client in (KEPT_OWNER, AGENT_OWNER)

    def explains_outside(self, entry: Entry) -> bool:
        """Return whether processes and sockets of the entry may be there."""
        return self.stays and (self.explains(entry) if self.lingers else _is_kept(entry))


def _agents(base: Path, run: str, clients: str) -> list[_Agent]:
    return [_Agent(found, clients) for found in survey(base) if found.directory.name.startswith(f"{run}-")]


def _is_kept(entry: Entry) -> bool:
    return entry.owner.client == KEPT_OWNER


def _left_by(agent: _Agent) -> Iterator[Leak]:
    contents = agent.found.contents
    if contents is None:
        yield Leak("directory", f"{agent.directory}: {agent.found.problem}")
        return
    entries = agent.entries
    if not agent.stays:
        state = "its agent lives" if agent.is_alive else "its agent is dead"
        yield Leak("directory", f"{agent.directory} ({state})")
        if agent.is_alive:
            yield Leak("process", f"{contents.header.agent.pid} (the agent itself)")
    for entry in entries:
        if not (agent.stays and agent.explains(entry)):
            what = entry.what.get("path") or entry.what.get("pid") or entry.id
            yield Leak("entry", f"of a {entry.kind}: {what}, of {entry.owner.client}")
    yield from _unlisted_files(agent.directory, entries)
    if (disks := contents.header.disk_directory) and agent.stays:
        inside = [entry for entry in entries if entry.what.get("path") != disks]
        yield from _unlisted_files(Path(disks), inside)


def _unlisted_files(directory: Path, entries: Iterable[Entry]) -> Iterator[Leak]:
    """Yield files that are neither listed, nor in a listed directory, nor the agent's own."""
    listed = [Path(entry.what["path"]) for entry in entries if "path" in entry.what]
    for path in sorted(files_below(directory)):
        own = path.parent == directory and path.name in _OWN_FILES
        if not own and not any(path.is_relative_to(directory) for directory in listed):
            yield Leak("socket" if path.is_socket() else "file", str(path))


def _processes(tags: Sequence[str], agents: Iterable[_Agent]) -> Iterator[Leak]:
    explained = [entry for agent in agents for entry in agent.entries if agent.explains_outside(entry)]
    known = {ProcessIdentity.from_facts(entry.what) for entry in explained}
    for process in sorted(find_tagged(*tags), key=lambda process: process.pid):
        if process not in known and not any(process.carries(entry.id) for entry in explained):
            yield Leak("process", f"{process.pid} ({_command(process.pid)})")


def _command(pid: int) -> str:
    return _command_line(pid)[:_COMMAND_LENGTH] or "gone meanwhile"


def _command_line(pid: int) -> str:
    return system().processes.command_line(pid).decode(errors="replace").replace("\0", " ").strip()


def _sockets(agents: Iterable[_Agent], prefix: Path) -> Iterator[Leak]:
    """Yield UNIX sockets bound to a path of the run, even if the path has been unlinked.

    Any user can bind an abstract socket name and can read the run's id from process command lines. Only names in the
    base directory count, because no other user can create those.

    :param prefix: the common prefix of the run's directories.
    """
    expected = {str(agent.directory / SOCKET_NAME) for agent in agents if agent.stays}
    explained = [path for agent in agents for path in _explained_paths(agent)]
    expected.update(explained)
    kept = [f"{path}/" for path in explained]
    for name in sorted(set(system().host.bound_sockets()) - expected):
        if name.startswith(f"{prefix.absolute()}-") and not name.startswith(tuple(kept)):
            yield Leak("socket", name)


def _explained_paths(agent: _Agent) -> Iterator[str]:
    return (entry.what["path"] for entry in agent.entries if agent.explains_outside(entry) and "path" in entry.what)


def _mounts(run: str) -> Iterator[Leak]:
    for mount in system().host.mounts() or ():
        if run in mount.record and _is_out_of_others_reach(mount.point):
            yield Leak("mount", str(mount.point))


def _is_out_of_others_reach(path: Path) -> bool:
    """Return whether no other user can have created the file at a path.

    Users can mount their own file systems (FUSE), and set up loop devices over their files (udisks), with the run's id
    in the name.
    """
    parent = next(directory for directory in path.parents if directory.is_dir())
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


def _datasets(run: str, agents: Iterable[_Agent]) -> Iterator[Leak]:
    """Yield datasets that no ledger lists. Those that one lists are leaks as entries are, or another run's."""
    listed_names = {entry.what.get("dataset") for agent in agents for entry in agent.entries}
    if zfs := shutil.which("zfs"):
        command = [zfs, "list", "-H", "-o", "name", "-t", "all"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ZFS_TIMEOUT_S).stdout
        except (OSError, subprocess.TimeoutExpired):
            return
        for name in listed.splitlines():
            if run in name and name.partition("@")[0] not in listed_names:
                yield Leak("ZFS dataset", name)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
