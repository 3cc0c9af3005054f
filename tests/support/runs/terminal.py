"""A program on a terminal of its own, at which a test types."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["Terminal", "on_terminal"]

WAIT_S = 90


class Terminal:
    """The user's side of a terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.descriptor = descriptor
        self.process = process
        self.shown = ""
        self._found = 0

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the terminal shows a text, after the texts of earlier calls."""
        deadline = time.monotonic() + WAIT_S
        while (place := self.shown.find(text, self._found)) < 0:
            came = time.monotonic() < deadline and self._read()
            assert came, f"{text!r} was not shown:\n{self.shown}"
        self._found = place + len(text)

    def wait_for_end(self) -> int:
        while self._read():
            pass
        return self.process.wait(WAIT_S)

    def _read(self) -> bool:
        if not select.select([self.descriptor], [], [], WAIT_S)[0]:
            return False
        try:
            data = os.read(self.descriptor, 4096)
        except OSError:  # the other side has been closed
            return False
        self.shown += data.decode(errors="replace").replace("\r", "")
        return True


@contextlib.contextmanager
def on_terminal(command: Sequence[str], *, cwd: Path) -> Iterator[Terminal]:
    """Start a program with a new controlling terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(["setsid", "--ctty", *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd)
    finally:
        os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
