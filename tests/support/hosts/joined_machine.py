"""A machine that joins a run: `propolis join` in a process, with a runtime directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from propolis_command import COMMAND

__all__ = ["JoinedMachine", "joined_machine"]

END_TIMEOUT_S = 60.0
MARK = "JOINED_MACHINE"


class JoinedMachine:
    """A process of `propolis join`.

    :param runtime: its XDG_RUNTIME_DIR. All processes that the run starts there carry it in `MARK`: agents have no
        XDG_RUNTIME_DIR.
    """

    def __init__(self, process: subprocess.Popen[str], runtime: Path) -> None:
        self.process = process
        self.runtime = runtime
        self._directories: set[Path] = set()
        """Those of the agents that have been seen."""

    def wait_until_joined(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("joined the run"), (line, self.process.communicate(timeout=END_TIMEOUT_S))

    def output(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it wrote."""
        output, errors = self.process.communicate(timeout=END_TIMEOUT_S)
        return self.process.returncode, output + errors

    def pids(self, words: str) -> list[int]:
        """Return the ids of the machine's processes whose command lines contain these words."""
        return [pid for pid, line in self._processes().items() if words in line]

    def processes(self) -> list[str]:
        """Return the command lines of what runs on the machine, but for `propolis join`."""
        return [line for line in self._processes().values() if line]

    def _processes(self) -> dict[int, str]:
        wanted, found = f"{MARK}={self.runtime}".encode(), dict[int, str]()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(path.name) != self.process.pid and wanted in (path / "environ").read_bytes().split(b"\0"):
                    line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(path.name)] = line
                    self._directories.update(map(Path, re.findall(r'"directory": "([^"]+)"', line)))
        return found

    def wait_until_clean(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Wait until nothing of a run is there, neither processes nor files."""
        deadline = time.monotonic() + timeout_s
        while left := [*self.processes(), *(str(path) for path in self._directories if path.exists())]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


@contextlib.contextmanager
def joined_machine(command: str, *, program: Sequence[str] = COMMAND) -> Iterator[JoinedMachine]:
    """Run the command that a run shows, and kill it at the end of the block if it has not ended.

    :param program: what is run for ``propolis``.
    """
    runtime = Path(tempfile.mkdtemp(prefix="j-", dir="/tmp"))
    words = shlex.split(command)
    assert words[:2] == ["propolis", "join"]
    process = subprocess.Popen(
        [*program, *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), MARK: str(runtime), "PYTHONUNBUFFERED": "1"},
    )
    machine = JoinedMachine(process, runtime)
    try:
        yield machine
        machine.wait_until_clean()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate()
        shutil.rmtree(runtime, ignore_errors=True)
