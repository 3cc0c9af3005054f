"""The ledger writer: record each resource of a client in the ledger before it is created."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from .entry import TAG_VARIABLE, Entry, Owner
from .identity import ProcessIdentity
from .ledger import Ledger

__all__ = ["LedgerWriter"]


class LedgerWriter:
    """Records the resources of one owner's VMs and disks. Also the engine's journal of child processes."""

    def __init__(self, ledger: Ledger, owner: Owner) -> None:
        self._ledger = ledger
        self.owner = owner
        self._entries: list[Entry] = []

    def intend(self, what: str = "") -> _ProcessRecord:
        """Record that a process is about to be started.

        :param what: what it is, for users; it must not be secret.
        """
        return _ProcessRecord(self._ledger, self._intend("process", {"what": what} if what else {}))

    def transfer_ownership(self, owner: Owner) -> None:
        """Transfer all recorded and future resources to another owner."""
        for entry in filter(self._ledger.lists, self._entries):
            self._ledger.transfer_ownership(entry, owner)
        self.owner = owner

    @contextlib.contextmanager
    def creating(self, kind: str, path: Path) -> Iterator[Entry]:
        """Record a path that the block creates; if the block fails, remove it."""
        entry = self._intend(kind, {"path": str(path)})
        try:
            yield entry
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir() if kind == "directory" else path.unlink()
            self._ledger.gone(entry)
            raise

    @contextlib.contextmanager
    def making(self, kind: str, what: Mapping[str, str]) -> Iterator[Entry]:
        """Record a resource without a path that the block creates; the block must remove it if it fails."""
        entry = self._intend(kind, what)
        try:
            yield entry
        except BaseException:
            self._ledger.gone(entry)
            raise

    def gone(self, entry: Entry) -> None:
        """Record that a resource was removed."""
        self._ledger.gone(entry)

    def _intend(self, kind: str, what: Mapping[str, str]) -> Entry:
        entry = self._ledger.intend(kind, what, self.owner)
        self._entries = [*filter(self._ledger.lists, self._entries), entry]
        return entry


class _ProcessRecord:
    def __init__(self, ledger: Ledger, entry: Entry) -> None:
        self._ledger = ledger
        self._entry = entry

    @property
    def environment(self) -> Mapping[str, str]:
        return {TAG_VARIABLE: self._entry.id}

    def live(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._ledger.live(self._entry, **ProcessIdentity.of(pid).facts())

    def gone(self) -> None:
        self._ledger.gone(self._entry)
