"""The rendezvous file of a run: its processes use it to find the agent and to elect the one that starts it.

A small file next to the agents' directories names the socket of the run's agent. A process must hold its `flock` to
start an agent; the kernel releases the lock when that process ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Final

__all__ = ["SUFFIX", "Rendezvous", "remove_abandoned"]

SUFFIX: Final = ".rendezvous"
POLL_S: Final = 0.02


class Rendezvous:
    """The rendezvous file of one run.

    :param base: the parent of all agents' directories.
    :param run: the run's id.
    """

    def __init__(self, base: Path, run: str) -> None:
        self.path = base / f"{run}{SUFFIX}"

    def socket(self) -> Path | None:
        """Return the socket of the run's last known agent, if any; the agent may have exited."""
        try:
            text = self.path.read_text().strip()
        except FileNotFoundError:
            return None
        return Path(text) if text else None

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the lock, which permits starting an agent and recording its socket."""
        while True:
            with self._open() as file:
                await _flock(file)
                if self._is_current(file):
                    try:
                        yield
                    finally:
                        if not self.socket():  # no agent was started
                            self.path.unlink(missing_ok=True)
                    return

    def name(self, socket: Path) -> None:
        """Record the socket of the run's agent. The caller must hold the rendezvous."""
        self.path.write_text(f"{socket}\n")

    def leave(self, socket: Path | None) -> bool:
        """Remove the file if it still names this agent and no process holds it; return whether it was removed.

        :param socket: the agent's socket; None removes the file only if it names no agent.
        """
        with contextlib.suppress(BlockingIOError, FileNotFoundError), self.path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_current(file) and self.socket() in (socket, None):
                self.path.unlink()
                return True
        return False

    def _open(self) -> IO[str]:
        return os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")

    def _is_current(self, file: IO[str]) -> bool:
        """Return whether the path still names the locked file: an agent that exited may have removed it."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def remove_abandoned(base: Path) -> list[Path]:
    """Remove the rendezvous files of this user's runs whose agents are gone, and return their paths."""
    removed = []
    for path in filter(_is_ours, base.glob(f"*{SUFFIX}")):
        rendezvous = Rendezvous(base, path.name.removesuffix(SUFFIX))
        socket = rendezvous.socket()
        # It names no socket while a process holds it to start an agent, or after that process was killed.
        if (socket is None or not socket.exists()) and rendezvous.leave(socket):
            removed.append(path)
    return removed


def _is_ours(path: Path) -> bool:
    """Return whether it is a regular file of this user; other users' files are never opened."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


async def _flock(file: IO[str]) -> None:
    # The kernel offers no way to await a lock, and a thread in flock() could not be cancelled.
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(POLL_S)
        else:
            return
