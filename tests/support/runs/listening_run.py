"""Runs of pytest that hosts join."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from inner_run import PLUGINS, InnerRun
from joined_machine import JoinedMachine, joined_machine

__all__ = ["INVENTORY", "NEAR", "ListeningRun", "joined_run", "listening_run", "write_inventory", "write_waiting_test"]

TIMEOUT_S = 90.0
INVENTORY = """
[hosts.far]
kind = "joined"
slots = 2
cpus = 4
memory_mib = 4096
"""
NEAR = """
[hosts.near]
kind = "local"
"""


class ListeningRun:
    """A run of pytest that hosts join.

    :param output: the file that it writes to.
    """

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.output = output

    @property
    def command(self) -> str:
        """The command that the run shows; waits for it."""
        return self.wait_for("propolis join ").split("run there: ")[1]

    def wait_for(self, text: str) -> str:
        """Wait for a line of the output, and return it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            for line in self.output.read_text().splitlines(keepends=True):
                if text in line and line.endswith("\n"):
                    return line.strip()
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def result(self) -> str:
        """Wait for its end, and return its output."""
        self.process.wait(TIMEOUT_S)
        return self.output.read_text()

    def wait_for_guest(self) -> None:
        """Wait until the guest of `write_waiting_test` runs its command."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.output.with_name("guest_runs").exists():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)


@contextlib.contextmanager
def listening_run(inner: InnerRun, *arguments: str, listen: str = "127.0.0.1:0") -> Iterator[ListeningRun]:
    """Start pytest with the inventory ``hosts.toml``."""
    output = inner.pytester.path / "output.txt"
    words = [sys.executable, "-m", "pytest", *(f"-p{name}" for name in PLUGINS), "--propolis-hosts", "hosts.toml"]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*words, "--propolis-listen", listen, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=inner.pytester.path,
            env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )
    try:
        yield ListeningRun(process, output)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def joined_run(inner: InnerRun, *arguments: str) -> Iterator[tuple[ListeningRun, JoinedMachine]]:
    with listening_run(inner, *arguments) as run, joined_machine(run.command) as machine:
        machine.wait_until_joined()
        yield run, machine


def write_inventory(inner: InnerRun, text: str) -> None:
    (inner.pytester.path / "hosts.toml").write_text(text)


def write_waiting_test(inner: InnerRun) -> None:
    """A test whose guest runs a command that does not end."""
    write_inventory(inner, INVENTORY)
    inner.write(
        test_it="""
        import pathlib

        async def test_it(test_vm):
            await test_vm.run("true")
            pathlib.Path("guest_runs").touch()
            await test_vm.run("sleep 500", timeout_s=400)
        """
    )
