"""Leases in a directory: for runs on one machine.

A lease is a lock on a file, which the kernel releases when its process ends, however it ends. A file beside it names
the run that has it. The locked files stay: one that is removed could be locked by two runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from filelock import FileLock, Timeout

from .holder import Holder, decode_holder

__all__ = ["FileLeases"]

LOOK_S: Final = 1.0
"""How often a run that waits looks which run has the host now."""


class FileLeases:
    """Takes hosts, and keeps them until it is closed, or its process ends.

    :param directory: of the locks; it is made.
    :param say: shows a line to the user.
    """

    def __init__(self, directory: Path, *, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._taken = contextlib.ExitStack()

    def take(self, names: Sequence[str], me: Holder) -> None:
        """Wait until this run has all hosts of these names.

        :raises OSError: when the directory cannot be used.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            self._taken.enter_context(_lease(self._directory / f"{name}.lock", name, self._say, me))

    def close(self) -> None:
        """Release the hosts. Idempotent."""
        self._taken.close()


@contextlib.contextmanager
def _lease(path: Path, host: str, say: Callable[[str], None], me: Holder) -> Iterator[None]:
    lock, note = FileLock(path, mode=0o666, thread_local=False), path.with_suffix(".json")
    reported: Holder | None = None
    waited = False
    while True:
        try:
            lock.acquire(timeout=LOOK_S if waited else 0)
            break
        except Timeout:
            holder = _holder(note)
            if not waited or holder != reported:
                say(f"propolis: waiting for host {host}: {holder or 'another run has it'}")
            waited, reported = True, holder
    try:
        note.write_bytes(msgspec.json.encode(me))
        if waited:
            say(f"propolis: host {host} is free now")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> Holder | None:
    try:
        return decode_holder(note.read_bytes())
    except OSError:  # it is about to write it, or has just ended
        return None
