"""The ledger: a write-ahead log of the resources that an agent creates and removes.

One JSON line per transition, ``intent -> live -> gone``, after one header line. An intent is synced to disk before the
call returns, so every existing resource is in the ledger, however the agent or the machine dies. The reverse does not
hold: a listed resource may not exist yet, or may no longer exist. Cleanup must therefore be idempotent.

An open ledger holds a lock on its file (``flock``), which the kernel releases when the agent dies. Child processes do
not inherit the descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from ..agent_api.retention import Kept
from ..errors import AgentError, HostError, ResourceExhausted
from ..operating_system.no_space import is_no_space
from .entry import Entry, Owner
from .identity import ProcessIdentity
from .ledger_text import FORMAT, Gone, Header, Intent, Keep, LedgerContents, Live, Own, Transition, encode, parse

__all__ = ["LEDGER_NAME", "Ledger", "read_ledger"]

LEDGER_NAME: Final = "ledger.jsonl"
"""The name of the ledger in an agent's run directory."""

_data_sync: Final = getattr(os, "fdatasync", os.fsync)


def read_ledger(path: Path) -> LedgerContents:
    """Read a ledger without locking or changing it, whether or not its agent is running.

    An incomplete last line, as a killed agent or a power loss leaves it, is ignored: the call that wrote it had not
    returned. Complete lines that cannot be parsed are skipped and counted.

    :raises FileNotFoundError: when there is none.
    :raises AgentError: when it cannot be read, has no complete header, or is of a newer format.
    """
    descriptor = _open_existing(path, os.O_RDONLY)
    try:
        return parse(_read_all(descriptor), path)
    finally:
        os.close(descriptor)


class Ledger:
    """A ledger opened for writing, by its agent or by the reaper of a dead agent.

    It is a context manager, and closing it is idempotent. Closing does not affect the entries.
    """

    def __init__(self, path: Path, descriptor: int, contents: LedgerContents, *, torn: bool) -> None:
        self.path = path
        self.header = contents.header
        self._descriptor: int | None = descriptor
        self._entries = contents.entries
        self._end = contents.end
        self._torn = torn

    @classmethod
    def open(cls, path: Path, *, run: str, disk_directory: str = "", lingers: bool = False) -> Ledger:
        """Create a ledger (mode 0600) and sync it, before anything else is created in its directory.

        :param disk_directory: where, besides the ledger's directory, the agent will create directories and files.
        :param lingers: whether the agent stays after its last client.

        :raises AgentError: when there is one already, or it cannot be created.
        :raises ResourceExhausted: when there is no space for it.
        """
        header = Header(
            version=FORMAT,
            run=run,
            tag=f"{run}.{secrets.token_hex(16)}",
            agent=ProcessIdentity.current(),
            uid=os.geteuid(),
            since=time.time(),
            disk_directory=disk_directory,
            lingers=lingers,
        )
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _explained(error, path, "created") from error
        ledger = cls(path, descriptor, LedgerContents(header, {}, 0), torn=False)
        try:
            _lock(descriptor, path)
            ledger._append(header)
            _sync_directory(path.parent)
            _sync_directory(path.parent.parent)
        except BaseException:
            ledger.close()
            path.unlink(missing_ok=True)
            raise
        return ledger

    @classmethod
    def adopt(cls, path: Path) -> Ledger:
        """Open the ledger of a dead agent, to record its cleanup. Nothing is written yet.

        :raises FileNotFoundError: if it does not exist or was removed meanwhile.
        :raises AgentError: if a running agent or another reaper holds it, or as for `read_ledger`.
        """
        descriptor = _open_existing(path, os.O_RDWR)
        try:
            _lock(descriptor, path)
            data = _read_all(descriptor)
            contents = parse(data, path)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, contents, torn=len(data) > contents.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and release its lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """The entries that are not gone, in order of their intents."""
        return list(self._entries.values())

    def intend(self, kind: str, what: Mapping[str, str], owner: Owner) -> Entry:
        """Record durably that a resource is about to be created; create it only after this returns.

        :raises ResourceExhausted: when the disk is full. The ledger is as before, so nothing must be created.
        :raises AgentError: when the ledger cannot be written or is closed.
        """
        return self.intend_many([(kind, what, owner)])[0]

    def intend_many(self, wishes: Iterable[tuple[str, Mapping[str, str], Owner]]) -> list[Entry]:
        """Record many intents (kind, what, owner) atomically, with a single sync. See `intend`."""
        now = time.time()
        entries = [
            Entry(
                id=f"{self.header.tag}-{secrets.token_hex(8)}",
                kind=kind,
                what=dict(what),
                owner=owner,
                since=now,
                run=self.header.run,
            )
            for kind, what, owner in wishes
        ]
        self._append(*map(Intent, entries))
        self._entries.update((entry.id, entry) for entry in entries)
        return entries

    def live(self, entry: Entry, /, **facts: str) -> Entry:
        """Record durably that the resource exists, with facts that are only known now, such as its pid.

        :raises ResourceExhausted: if the disk is full. The entry stays an intent, which is cleaned up all the same.
        :raises AgentError: when the entry is gone, or the ledger cannot be written or is closed.
        """
        current = self._current(entry)
        self._append(Live(entry.id, facts))
        return self._replace(msgspec.structs.replace(current, is_live=True, what=current.what | facts))

    def keep(self, entry: Entry, until: float | None, *, reason: str) -> Entry:
        """Record durably that the resource survives its owner, until this Unix time or indefinitely.

        :raises ResourceExhausted: when the disk is full. The entry is not kept then.
        :raises AgentError: when the entry is gone, or the ledger cannot be written or is closed.
        """
        current = self._current(entry)
        kept = Kept(reason, until)
        self._append(Keep(entry.id, kept))
        return self._replace(msgspec.structs.replace(current, kept=kept))

    def transfer_ownership(self, entry: Entry, owner: Owner) -> Entry:
        """Record durably that the resource has a new owner.

        :raises ResourceExhausted: when the disk is full. The owner is as before then.
        :raises AgentError: when the entry is gone, or the ledger cannot be written or is closed.
        """
        current = self._current(entry)
        self._append(Own(entry.id, owner))
        return self._replace(msgspec.structs.replace(current, owner=owner))

    def lists(self, entry: Entry) -> bool:
        """Return whether the ledger still lists the resource."""
        return entry.id in self._entries

    def gone(self, *entries: Entry, sync: bool = False) -> None:
        """Record that resources no longer exist. Those already gone are ignored.

        Not synced unless asked, and a full disk is not an error: a lost "gone" costs the reaper one idempotent cleanup.

        :raises AgentError: when the ledger cannot be written or is closed.
        """
        going = [entry.id for entry in entries if self._entries.pop(entry.id, None)]
        with suppress(ResourceExhausted):
            self._append(*map(Gone, going), sync=sync)

    def _current(self, entry: Entry) -> Entry:
        try:
            return self._entries[entry.id]
        except KeyError:
            raise AgentError(
                f"{entry.kind} {entry.id} is not in the ledger {self.path}: it is gone, or of another ledger",
                hint="an entry can be live or kept only between its intent and its gone",
            ) from None

    def _replace(self, entry: Entry) -> Entry:
        self._entries[entry.id] = entry
        return entry

    def _append(self, *records: Header | Transition, sync: bool = True) -> None:
        """Append complete lines, or leave the file unchanged."""
        if self._descriptor is None:
            raise AgentError(f"the ledger {self.path} is closed", hint="write to a ledger only inside its `with` block")
        lines = encode(*records)
        try:
            self._cut_torn_end()
            self._torn = True
            _write_all(self._descriptor, lines, self._end)
            if sync:
                _data_sync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                self._cut_torn_end()
            raise _explained(error, self.path, "written") from error
        self._end += len(lines)
        self._torn = False

    def _cut_torn_end(self) -> None:
        if self._torn and self._descriptor is not None:
            os.ftruncate(self._descriptor, self._end)
            self._torn = False


def _open_existing(path: Path, mode: int) -> int:
    # Not blocking: a pipe under this name must not hang the reader.
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _explained(error, path, "opened") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AgentError(f"the ledger {path} is not a regular file", hint="find out what put it there, and remove it")
    return descriptor


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AgentError(
            f"the ledger {path} is held by a living agent or another reaper",
            hint="wait for the run, or the other `propolis gc`, to end",
        ) from None
    except OSError as error:
        raise _explained(error, path, "locked") from error
    if os.fstat(descriptor).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "removed by another reaper", str(path))


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _sync_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _explained(error, path / LEDGER_NAME, "made durable") from error


def _explained(error: OSError, path: Path, verb: str) -> HostError:
    message = f"the ledger {path} cannot be {verb}: {error.strerror}"
    if is_no_space(error):
        return ResourceExhausted(
            message, hint=f"free space on the file system of {path.parent}; `propolis gc` removes what dead runs left"
        )
    return AgentError(message, hint=f"check that {path.parent} exists, is yours and is on a healthy file system")
