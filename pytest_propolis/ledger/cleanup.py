"""Cleanup functions for each kind of resource that a ledger can list."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from ..errors import AgentError
from ..storage.forks.zfs import remove_clone
from .entry import Entry, command_line_tag
from .identity import ProcessIdentity, find_tagged
from .ledger_text import Header
from .removal import parent_of, refusal, remove, require_unmounted

__all__ = ["CLEANUPS", "KILL_BOUND_S", "Cleanup", "DeadRun", "end", "strays"]

KILL_BOUND_S: Final = 5.0
"""How long to wait for killed processes to exit, in seconds."""

_PATH_KINDS: Final = ("directory", "file", "socket")


class DeadRun(msgspec.Struct, frozen=True):
    """The context that a cleanup function gets about a run whose agent died.

    :param directory: the run directory.
    :param entries: all ledger entries, in order of creation.
    :param spared: the entries that are kept.
    :param roots: directories besides the run directory in which the run's paths may be removed.
    """

    directory: Path
    header: Header
    entries: tuple[Entry, ...]
    spared: tuple[Entry, ...]
    roots: tuple[Path, ...] = ()


Cleanup = Callable[[Entry, DeadRun], None]
"""Remove the resource of one entry, which may be gone already or may never have existed. Raise an `OSError` or a
`PropolisError` if that fails or is not allowed; the entry then stays in the ledger."""


def _undo_process(entry: Entry, run: DeadRun) -> None:
    """End the process by its identity, and all processes that carry the entry's id: its pid may not have been recorded,
    and it may have started others."""
    recorded = ProcessIdentity.from_facts(entry.what)

    def remaining() -> list[ProcessIdentity]:
        tagged = find_tagged(entry.id)
        return [recorded, *tagged] if recorded and recorded.is_alive() else tagged

    end(remaining)


def strays(run: DeadRun) -> list[ProcessIdentity]:
    """Processes that carry the run's tag, except those that belong to a process entry or to something kept."""
    listed = [entry for entry in run.entries if entry.kind == "process" or entry in run.spared]
    # A process that carries only the tag could belong to a kept resource; one that carries the id of another entry
    # does not. A QEMU whose wrapper cleared its environment has the run's id only in its command line.
    tags = [f"{run.header.tag}-"] if run.spared else [run.header.tag, command_line_tag(run.header.run)]
    found = {process for tag in tags for process in find_tagged(tag)}
    return [process for process in found if not any(_belongs(process, entry) for entry in listed)]


def _belongs(process: ProcessIdentity, entry: Entry) -> bool:
    return ProcessIdentity.from_facts(entry.what) == process or process.carries(entry.id)


def end(remaining: Callable[[], list[ProcessIdentity]]) -> list[ProcessIdentity]:
    """Kill until none is left: a process may start another one just before it dies."""
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


def _undo_path(entry: Entry, run: DeadRun) -> None:
    """Remove the path if this user owns it and it lies strictly inside the run directory or an allowed root."""
    path = _path_of(entry)
    directory = _spellings(run.directory)
    if path in directory:
        return  # removed last, when nothing is left that needs the ledger in it
    if any(spelling.is_relative_to(path) for spelling in directory):
        raise refusal(path, "holds the run directory")
    roots = [spelling for root in (run.directory, *run.roots, *_disk_roots(path, run)) for spelling in _spellings(root)]
    with suppress(FileNotFoundError), parent_of(path, roots) as parent:
        found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) and entry.kind != "directory":
            raise refusal(path, f"is a directory, not a {entry.kind}")
        require_unmounted(path)
        remove(path, parent)


def _disk_roots(path: Path, run: DeadRun) -> tuple[Path, ...]:
    """Return the parent of the agent's disk directory if the path is or is in that directory."""
    disks = Path(run.header.disk_directory)
    return (disks.parent,) if disks.name == run.directory.name and path.is_relative_to(disks) else ()


def _spellings(directory: Path) -> tuple[Path, Path]:
    """The spellings under which a ledger may have recorded a directory that this process was given."""
    return directory.absolute(), directory.resolve()


def _path_of(entry: Entry) -> Path:
    path = Path(entry.what.get("path", ""))
    if not path.is_absolute() or ".." in path.parts:
        raise AgentError(f"{entry.kind} {entry.id} has no absolute path", hint="its ledger is damaged: look into it")
    return path


def _destroy_zfs_clone(entry: Entry, _run: DeadRun) -> None:
    """Destroy the clone if its name belongs to this project; the last clone takes the snapshot with it."""
    asyncio.run(remove_clone(entry.what))


CLEANUPS: Final[Mapping[str, Cleanup]] = MappingProxyType(
    {"process": _undo_process, "zfs-clone": _destroy_zfs_clone} | dict.fromkeys(_PATH_KINDS, _undo_path)
)
"""The built-in cleanup functions by kind. To add one, extend a copy: ``{**CLEANUPS, "nbd": remove_nbd}``."""
