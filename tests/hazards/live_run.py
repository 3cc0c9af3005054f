"""A run of pytest that is up and doing something, to be hit by a test, and looked at from outside."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LiveRun", "live_run"]

PHASE_TIMEOUT_S = 120
CLEAN_TIMEOUT_S = 60

WORDS = {"agent": "pytest_propolis.agent", "qemu": "qemu-system", "worker": "sys.stdin.readline"}
"""What the command lines of a run's processes contain."""

CONFTEST = """
import asyncio, os, pytest, pytest_asyncio

def reached(phase):
    if phase == os.environ["HAZARD_PHASE"]:
        descriptor = os.open(os.environ["HAZARD_FIFO"], os.O_WRONLY)
        os.write(descriptor, b"x")
        os.close(descriptor)

def pytest_propolis_vm_created(vm, config):
    reached("booting")

@pytest_asyncio.fixture
async def slow_to_leave(vm_factory):
    yield
    if os.environ["HAZARD_PHASE"] == "tearing down":
        reached("tearing down")
        await asyncio.sleep(600)
"""

TEST = """
from conftest import reached

async def test_victim(vm_factory, slow_to_leave):
    vm = await vm_factory.start("victim", guest="micro")
    assert await vm.run("echo up") == "up"
    if __import__("os").environ["HAZARD_PHASE"] != "tearing down":
        reached("logged in")
        await vm.wait_for_serial_output("this never comes", timeout_s=600)
"""


class LiveRun:
    """A pytest process and all that belongs to it. Everything of it carries a runtime directory of its own."""

    def __init__(self, place: Path, process: subprocess.Popen[bytes]) -> None:
        self._place = place
        self.controller = process

    @property
    def output(self) -> str:
        return (self._place / "output").read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """The command lines of the run's processes that are alive, by process id."""
        mark = f"XDG_RUNTIME_DIR={self._place}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, target: str) -> int:
        """One process of the run: its controller, a worker of xdist's, the agent, a QEMU."""
        if target == "controller":
            return self.controller.pid
        return next(pid for pid, line in self.processes().items() if WORDS[target] in line)

    def wait_for(self, target: str) -> None:
        """Wait until a process is there."""
        deadline = time.monotonic() + PHASE_TIMEOUT_S
        while not any(WORDS[target] in line for line in self.processes().values()):
            assert time.monotonic() < deadline, f"no {target}:\n{self.output}"
            select.select([], [], [], 0.02)

    def hit(self, target: str, number: signal.Signals) -> None:
        """Send a signal to one process of the run, or to its whole process group, as a terminal does."""
        if target == "group":
            os.killpg(self.controller.pid, number)
        else:
            os.kill(self.pid_of(target), number)

    def files(self) -> list[str]:
        base = self._place / "propolis"
        return sorted(str(path) for path in base.rglob("*")) if base.is_dir() else []

    def wait_until_clean(self) -> None:
        """Wait until no process and no file of the run is there any more."""
        deadline = time.monotonic() + CLEAN_TIMEOUT_S
        while self.processes() or self.files():
            assert time.monotonic() < deadline, f"left: {self.processes()} {self.files()}\n{self.output}"
            select.select([], [], [], 0.05)


@contextlib.contextmanager
def live_run(phase: str, *arguments: str, test: str = TEST) -> Iterator[LiveRun]:
    """Start a run, and wait until its test is in this phase: booting, logged in, or tearing down.

    :param test: the module with the test; it calls `reached` for phases of its own.
    """
    place = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    fifo = place / "phase"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    tests = place / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text(CONFTEST)
    (tests / "test_victim.py").write_text(test)
    (tests / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "XDG_RUNTIME_DIR": str(place),
        "HAZARD_PHASE": phase,
        "HAZARD_FIFO": str(fifo),
    }
    command = [sys.executable, "-m", "pytest", "-p", "propolis", "-p", "no:cacheprovider", "-q", *arguments]
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--basetemp={place / 'basetemp'}", str(tests)],
            env=environment,
            cwd=tests,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    run = LiveRun(place, process)
    try:
        ready, _, _ = select.select([reader], [], [], PHASE_TIMEOUT_S)
        assert ready, f"the run did not get to {phase!r}:\n{run.output}"
        yield run
    finally:
        os.close(reader)
        for pid in run.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(place, ignore_errors=True)
