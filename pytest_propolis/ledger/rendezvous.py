"""The rendezvous of a run: where its processes learn which agent is theirs, and agree on who starts it.

A small file beside the agents' directories names the socket of the run's agent. Its `flock` is the right to start one;
the lock goes with the process that holds it, however that ends.
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
    """The meeting place of one run.

    :param base: the directory that all agents' directories are in.
    :param run: the run's word.
    """

    def __init__(self, base: Path, run: str) -> None:
        self.path = base / f"{run}{SUFFIX}"

    def socket(self) -> Path | None:
        """The socket of the run's agent, if there was one lately."""
        try:
            text = self.path.read_text().strip()
        except FileNotFoundError:
            return None
        return Path(text) if text else None

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the right to start an agent, and to name it."""
        while True:
            with self._open() as file:
                await _flock(file)
                if self._is_current(file):
                    try:
                        yield
                    finally:
                        if not self.socket():  # no agent came of it
                            self.path.unlink(missing_ok=True)
                    return

    def name(self, socket: Path) -> None:
        """Name the run's agent. Only for who holds the rendezvous."""
        self.path.write_text(f"{socket}\n")

    def leave(self, socket: Path | None) -> bool:
        """Remove the file, if it still names this agent and nobody is about to start the next; says whether it did.

        :param socket: the agent's; None removes the file only if it names no agent.
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
        """Whether the path still leads to the file that was locked: an agent that left may have removed it."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def remove_abandoned(base: Path) -> list[Path]:
    """Remove the rendezvous of this user's runs whose agents are gone, and return their paths."""
    removed = []
    for path in filter(_is_ours, base.glob(f"*{SUFFIX}")):
        place = Rendezvous(base, path.name.removesuffix(SUFFIX))
        socket = place.socket()
        # It names none while somebody starts an agent, who holds it, or was killed over that.
        if (socket is None or not socket.exists()) and place.leave(socket):
            removed.append(path)
    return removed


def _is_ours(path: Path) -> bool:
    """Whether it is a file of this user's; one of another user's is not even opened."""
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
