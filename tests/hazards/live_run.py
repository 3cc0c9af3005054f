"""A run of pytest that a test disturbs and inspects from outside."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from directory_tree import paths_below

from pytest_propolis.ledger.audit import audit
from pytest_propolis.storage.alpine import ALPINE_DISK, ALPINE_INITRD, ALPINE_KERNEL
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

__all__ = ["PHASES", "LiveRun", "live_run", "started_run"]

PHASE_TIMEOUT_S = 120
CLEAN_TIMEOUT_S = 60

PHASES = ("downloading", "preparing", "booting", "logged in", "tearing down")
"""What the victim can be doing. The first two need nothing of a guest, the last two a guest that is up."""

WORDS = {
    "agent": "pytest_propolis.agent",
    "server": "propolis-server-qemu run",
    "qemu": "qemu-system",
    "downstairs": "qemu-storage-daemon",
    "downstairs program": "crucible-downstairs run",
    "recipe": "-image",
    "worker": "sys.stdin.readline",
}
"""What the command lines of a run's processes contain; that of an image being prepared is a QEMU's, too."""

PLUGINS = ("propolis", "asyncio", "xdist", "timeout")

CONFTEST = """
import os, pytest_asyncio

def reached(phase):
    if phase == os.environ["HAZARD_PHASE"]:
        descriptor = os.open(os.environ["HAZARD_FIFO"], os.O_WRONLY)
        os.write(descriptor, b"x")
        os.close(descriptor)

def pytest_runtest_setup():
    with open(os.environ["HAZARD_VICTIM"], "w") as file:
        file.write(str(os.getpid()))

def pytest_propolis_vm_created(vm, config):
    reached("booting")

@pytest_asyncio.fixture
async def slow_to_leave(vm_factory):
    vms = []
    yield vms
    if os.environ["HAZARD_PHASE"] == "tearing down":
        reached("tearing down")
        await vms[0].wait_for_serial_output("this never comes", timeout_s=600)
"""

TEST = """
import os
from conftest import reached

async def test_victim(vm_factory, slow_to_leave):
    vm = await vm_factory.start("victim", guest=os.environ["HAZARD_GUEST"])
    assert await vm.run("echo up") == "up"
    slow_to_leave.append(vm)
    if os.environ["HAZARD_PHASE"] != "tearing down":
        reached("logged in")
        await vm.wait_for_serial_output("this never comes", timeout_s=600)
"""


class LiveRun:
    """A pytest process and all that belongs to it. Everything of it carries a runtime directory of its own."""

    def __init__(self, place: Path, process: subprocess.Popen[bytes]) -> None:
        self._place = place
        self._words: set[str] = set()
        self.controller = process

    @property
    def place(self) -> Path:
        """The directory that everything of the run is in."""
        return self._place

    @property
    def scratch(self) -> Path:
        """The temporary directory of the run's processes, as TMPDIR names it."""
        return self._place / "tmp"

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
        """One process of the run: its controller, the worker that has the test, the agent, a QEMU."""
        if target == "controller":
            return self.controller.pid
        if target == "worker" and (victim := self._place / "victim").exists():
            return int(victim.read_text())
        return next(pid for pid, line in self.processes().items() if WORDS[target] in line)

    def wait_for(self, target: str) -> None:
        """Wait until a process is there."""
        self.wait_for_number(target, 1)

    def wait_for_number(self, target: str, number: int) -> None:
        """Wait until so many processes of a kind are there."""
        deadline = time.monotonic() + PHASE_TIMEOUT_S
        while sum(WORDS[target] in line for line in self.processes().values()) < number:
            assert time.monotonic() < deadline, f"no {target}:\n{self.output}"
            select.select([], [], [], 0.02)

    def note_runs(self) -> None:
        """Remember the words of the runs that are there, for the audit when all is over."""
        found = (self._place / "propolis").glob("*-*/")
        self._words |= {path.name.partition("-")[0] for path in found}

    def audit(self) -> list[str]:
        """Return the leaks that the project's audit finds of the recorded runs."""
        return [str(leak) for word in sorted(self._words) for leak in audit(self._place / "propolis", word)]

    def hit(self, target: str, number: signal.Signals) -> None:
        """Send a signal to one process of the run, or to its whole process group, as a terminal does."""
        if target == "group":
            os.killpg(self.controller.pid, number)
        else:
            os.kill(self.pid_of(target), number)

    def wait_ended(self, timeout_s: float) -> int:
        """Wait for the controller's end, and return its exit status.

        :raises TimeoutError: when it does not end in time.
        """
        try:
            return self.controller.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still there: {self.processes()}") from None

    def end_all(self) -> None:
        """Kill remaining processes repeatedly, because each may be starting another."""
        deadline = time.monotonic() + CLEAN_TIMEOUT_S
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            select.select([], [], [], 0.02)
        self.controller.wait()

    def collect_garbage(self) -> str:
        """Run ``propolis gc`` for this run, and return its output."""
        return self.command("gc")

    def command(self, *arguments: str) -> str:
        """Run ``propolis`` for this run, and return its output."""
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self._place)}
        command = [sys.executable, "-c", "from pytest_propolis.cli import main; main()", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done.stdout + done.stderr

    def files(self) -> list[str]:
        return list(map(str, paths_below(self._place / "propolis")))

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PHASE_TIMEOUT_S
        while not is_so():
            assert time.monotonic() < deadline, self.output
            select.select([], [], [], 0.02)

    def require_nothing_left(self, target: str, number: signal.Signals, *, timeout_s: float) -> None:
        """Wait for the run's end after a signal, and then until nothing of it is left.

        What an agent leaves that was killed with SIGKILL must go with `propolis gc`; everything else goes by itself.
        """
        self.wait_ended(timeout_s)
        if (target, number) == ("agent", signal.SIGKILL):
            self.wait_until(lambda: not self.processes())
            assert "removed" in self.collect_garbage()
        self.wait_until_clean()

    def wait_until_clean(self) -> None:
        """Wait until no process and no file of the run is there any more; then nothing else may be, either."""
        deadline = time.monotonic() + CLEAN_TIMEOUT_S
        while self.processes() or self.files():
            assert time.monotonic() < deadline, f"left: {self.processes()} {self.files()}\n{self.output}"
            select.select([], [], [], 0.05)
        assert self.audit() == []


@contextlib.contextmanager
def live_run(
    phase: str,
    *arguments: str,
    test: str | None = None,
    conftest: str = "",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[LiveRun]:
    """Start a run, and wait until its test is in this phase: one of `PHASES`.

    :param test: another test module; it calls `reached` of its conftest with the phase, to be taken as being there.
    :param conftest: is appended to the run's conftest.
    """
    place = Path(tempfile.mkdtemp(prefix="h-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        sign, variables = _prepared_for(phase, place, stack)
        files = {"conftest.py": CONFTEST + conftest, "test_victim.py": test or TEST}
        run = stack.enter_context(started_run(place, files, *arguments, environment={**variables, **environment}))
        if phase != "preparing":
            ready, _, _ = select.select([sign], [], [], PHASE_TIMEOUT_S)
            assert ready, f"the run did not get to {phase!r}:\n{run.output}"
        if phase in ("preparing", "booting"):  # a VM is told of just before its QEMU is there
            run.wait_for("recipe" if phase == "preparing" else "qemu")
        run.note_runs()
        yield run


def _prepared_for(phase: str, place: Path, stack: contextlib.ExitStack) -> tuple[int, dict[str, str]]:
    """Return a descriptor that becomes readable when the phase has begun, and the environment of such a run."""
    fifo = place / "phase"
    os.mkfifo(fifo)
    sign = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, sign)
    variables = {
        "HAZARD_PHASE": phase,
        "HAZARD_FIFO": str(fifo),
        "HAZARD_VICTIM": str(place / "victim"),
        "HAZARD_GUEST": "micro",
    }
    if phase == "preparing":
        _copy_artifacts(place / "artifacts")
        variables |= {"PROPOLIS_ARTIFACT_DIR": str(place / "artifacts"), "HAZARD_GUEST": "alpine"}
    if phase == "downloading":
        # An index that takes the connection and never says a word.
        index = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sign = index.fileno()
        variables |= {
            "PROPOLIS_ARTIFACT_DIR": str(place / "artifacts"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
            "PIP_TIMEOUT": "600",
        }
    return sign, variables


def _copy_artifacts(directory: Path) -> None:
    """Create a store with the sources of Alpine, but not the disk that is built from them."""
    chosen = os.environ.get("PROPOLIS_ARTIFACT_DIR")
    source, target = (ArtifactStore(path) for path in (Path(chosen) if chosen else default_artifact_dir(), directory))
    for artifact in (ALPINE_KERNEL, ALPINE_INITRD, ALPINE_DISK):
        path = target.path_of(artifact)
        path.parent.mkdir(mode=0o700, parents=True)
        shutil.copyfile(source.path_of(artifact), path)


@contextlib.contextmanager
def started_run(
    place: Path,
    files: Mapping[str, str],
    *arguments: str,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[LiveRun]:
    """Start a run of these test files; after the block, end its remaining processes.

    The run ends with the thread that starts it, as that does when its process is killed: a test of the run can wait
    for this process without end.
    """
    tests = place / "tests"
    tests.mkdir()
    (place / "tmp").mkdir()
    for name, text in files.items():
        (tests / name).write_text(text)
    (tests / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    everything = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "XDG_RUNTIME_DIR": str(place),
        "TMPDIR": str(place / "tmp"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # importing plugins that nothing uses is half of what a start costs
        "PROPOLIS_STANDBY": os.environ.get("HAZARD_STANDBY", "0"),  # a QEMU that is hit is the VM's
        **environment,
    }
    plugins = [f"-p{name}" for name in PLUGINS]
    command = [sys.executable, "-m", "pytest", *plugins, "-p", "no:cacheprovider", "-q", *arguments]
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command, f"--basetemp={place / 'basetemp'}", str(tests)],
            env=everything,
            cwd=tests,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    run = LiveRun(place, process)
    try:
        yield run
    finally:
        run.end_all()
