"""A machine that joins a run: `propolis join` in a process, with a runtime directory of its own."""

from __future__ import annotations

import contextlib
import os
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


class JoinedMachine:
    """A process of `propolis join`.

    :param runtime: its XDG_RUNTIME_DIR, which all processes carry that the run starts there.
    """

    def __init__(self, process: subprocess.Popen[str], runtime: Path) -> None:
        self.process = process
        self.runtime = runtime

    def wait_until_joined(self) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("joined the run"), (line, self.process.communicate(timeout=END_TIMEOUT_S))

    def output(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it wrote."""
        output, errors = self.process.communicate(timeout=END_TIMEOUT_S)
        return self.process.returncode, output + errors

    def processes(self) -> list[str]:
        """Return the command lines of what runs on the machine, but for `propolis join`."""
        wanted, found = f"XDG_RUNTIME_DIR={self.runtime}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(path.name) != self.process.pid and wanted in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return [line for line in found if line]

    def wait_until_clean(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Wait until nothing of a run is there, neither processes nor files."""
        deadline = time.monotonic() + timeout_s
        while left := [*self.processes(), *map(str, self.runtime.glob("propolis/*"))]:
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
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), "PYTHONUNBUFFERED": "1"},
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
