"""The log of a machine: what its QEMU prints, and marked lines of its server between them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import IO, Final

from ...agent_api.agent_process import SERVER_LINE
from ...errors import HostError
from ...storage.files import open_log
from .monitor import MachineError

__all__ = ["QemuLog", "append_lines"]

LAST_LINES: Final = 5


class QemuLog:
    """The part of a log that one QEMU prints; the file may have those of earlier ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0
        self._destination: Path | None = None

    def open(self) -> IO[bytes]:
        """Open the log for a QEMU that is about to start.

        :raises MachineError: when it cannot be opened, with the path.
        """
        try:
            log = open_log(self._path)
        except HostError as error:
            raise MachineError(f"{error.message}; {error.hint}") from None
        self._start = log.tell()
        return log

    def copy_to(self, destination: Path) -> None:
        """Make `finish` append what QEMU has printed to another log, which outlives this one."""
        self._destination = destination

    def finish(self) -> None:
        """Complete the log of a QEMU that has ended. Idempotent."""
        destination, self._destination = self._destination, None
        if destination is None:
            return
        with contextlib.suppress(HostError, OSError), self._path.open("rb") as log, open_log(destination) as copy:
            log.seek(self._start)
            shutil.copyfileobj(log, copy)

    def last_lines(self) -> str:
        """Return what QEMU has printed last, without warnings; empty if the log cannot be read."""
        with contextlib.suppress(OSError), self._path.open("rb") as log:
            log.seek(self._start)
            lines = log.read().decode(errors="replace").splitlines()
            printed = [line for line in lines if "warning:" not in line and not line.startswith(SERVER_LINE)]
            return "\n".join(printed[-LAST_LINES:])
        return ""


def append_lines(path: Path, text: str) -> None:
    """Append lines of the server to a log, if that is possible."""
    lines = [f"{SERVER_LINE}{line}\n" for line in text.splitlines()]
    with contextlib.suppress(HostError, OSError), open_log(path) as log:
        log.write("".join(lines).encode())
