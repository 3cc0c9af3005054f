"""The path from the plugin to a server process uses no Linux-only interface.

pytest, the plugin and the agent run as they would on illumos: by the implementation for illumos, over a procfs that is
written from this machine's processes, where everything that only Linux has is an error (`linux_forbidden`). The server
program runs on Linux as it is. So the Python is proven, and illumos's kernel is not.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

import pytest_propolis
from pytest_propolis.storage.alpine import ALPINE_INITRD, ALPINE_KERNEL
from pytest_propolis.storage.store import ArtifactStore
from pytest_propolis.storage.user_directories import default_artifact_dir

TIMEOUT_S: Final = 300
LEAVE_TIMEOUT_S: Final = 60
SUPPORT: Final = Path(__file__).parents[1] / "support" / "hosts"
PROJECT: Final = Path(pytest_propolis.__file__).parents[1]
ARTIFACTS: Final = default_artifact_dir()
"""Found before pytester gives each test a home directory of its own."""

SERVER: Final = Path(sys.executable).with_name("propolis-server-qemu")
PACKAGES: Final = Path(msgspec.__file__).parents[1]

PLACES: Final = [str(SUPPORT), str(PROJECT), str(PACKAGES)]
BEGIN: Final = f"import sys; sys.path[:0] = {PLACES!r}; import linux_forbidden"

GUEST: Final = """
    from pytest_propolis.guests.adapter import GuestImage
    from pytest_propolis.guests.micro import Micro

    class Firmware(Micro):
        name = "firmware"
        image = GuestImage()
        firmware = "uefi"

    def pytest_propolis_guests():
        return [Firmware()]
"""

TESTS: Final = """
    import sys

    async def test_a_guest_answers(test_vm):
        assert sys.platform == "sunos5"
        assert await test_vm.run("echo hello") == "hello"
"""


DISKS: Final = """
    from pathlib import Path
    from pytest_propolis import CapabilityMissing, DataDisk

    import pytest

    async def test_disks(vm_factory):
        image = Path("image.raw").absolute()
        disks = (DataDisk(name="empty", size_mib=1), DataDisk(name="fork", image=image, block_size=4096))
        vm = await vm_factory.start(boot_disk=image, disks=disks)
        await vm.run("modprobe virtio_blk; until [ -b /dev/vdc ]; do sleep 0.1; done")
        assert await vm.run("cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vdc/size") == "2048\\n2048\\n2048"
        assert await vm.run("head -c 7 /dev/vda; head -c 7 /dev/vdc") == "contentcontent"
        Path("image.qcow2").write_bytes(b"QFI\\xfb" + bytes(508))
        with pytest.raises(CapabilityMissing, match="image.qcow2 is qcow2, and without the engine disks are raw"):
            await vm_factory.start(name="other", boot_disk=Path("image.qcow2").absolute())

    async def test_forks(zfs_artifact_factory):
        fork = await zfs_artifact_factory(Path("image.raw").absolute(), provider="copy")
        assert (fork.format, await fork.read(0, 7)) == ("raw", b"content")
"""

KILLER: Final = """
    import os, signal
    from pathlib import Path
    from pytest_propolis.hosts.run_directory import base_directory
    from pytest_propolis.ledger.survey import survey

    async def test_the_agent_is_killed(vm_factory):
        await vm_factory.start()
        (vm,) = await vm_factory.agent.list_vms()
        Path("pid").write_text(str(vm.pid))
        (run,) = survey(base_directory())
        os.kill(run.contents.header.agent.pid, signal.SIGKILL)
        os._exit(9)
"""


class IllumosRun:
    """Runs pytest where Linux is forbidden.

    :param home: the directory of what is recorded.
    """

    def __init__(self, pytester: pytest.Pytester, home: Path) -> None:
        self.pytester = pytester
        self.home = home
        self.server = self._program("propolis-server", "")

    @property
    def refused(self) -> list[str]:
        """Return the Linux-only interfaces that were reached."""
        return self._lines("refused")

    @property
    def children(self) -> list[str]:
        """Return the children that were started, and the contracts that were abandoned."""
        return self._lines("children")

    @property
    def started_server(self) -> str:
        """Return the arguments of the server program, without its directories."""
        (start,) = [line for line in self.children if f"{self.server} run " in line and "--help" not in line]
        return start.replace(f"{self.pytester.path}/", "")

    @property
    def abandoned(self) -> int:
        """How many contracts were given up."""
        return sum(line.startswith("abandoned") for line in self.children)

    @property
    def left(self) -> list[Path]:
        """Return the remaining entries of the directory of runs, when the last agent has had time to leave.

        On a machine with much to do a run does not wait for that.
        """
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while (found := [*(self.home / "r" / "propolis").glob("*")]) and time.monotonic() < deadline:
            select.select([], [], [], 0.05)
        return found

    def propolis(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `propolis`."""
        start = f"sys.argv = ['propolis', *{arguments!r}]; from pytest_propolis.cli import main; main()"
        return self._python(start, {})

    def run(self, *arguments: str, before: str = "pass", in_agent: str = "pass") -> subprocess.CompletedProcess[str]:
        """
        :param before: Python code that runs before pytest.
        :param in_agent: Python code that runs before the agent.
        """
        # As the agent is started: `python -S -P -c CODE ARGUMENT...`
        agent = f"{BEGIN}; {self._begin}; {in_agent}; exec(sys.argv.pop(1))"
        python = self._program("python", f'shift 3; exec {shlex.quote(sys.executable)} -S -P -c "$AGENT" "$@"')
        words = ["-p", "propolis", "-p", "no:cacheprovider", "--propolis-server", str(self.server), *arguments]
        start = f"sys.executable = {str(python)!r}; {before}\nimport pytest; sys.exit(pytest.main({words!r}))"
        return self._python(start, {"AGENT": agent})

    def _python(self, start: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", f"{BEGIN}; {self._begin}; {start}"],
            cwd=self.pytester.path,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PROPOLIS_"))}
        return kept | {
            "PATH": f"{self.home}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(self.home / "r"),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
        }

    def serve(self, command: str) -> None:
        """Make the server program run a shell command, in which ``$address`` is where to listen."""
        self.server = self._program(
            "propolis-server",
            'case "$*" in *--help*) echo "Usage: propolis-server run <BOOTROM_PATH> <PROPOLIS_ADDR>"; exit;; esac\n'
            f"for address; do :; done\nunset AGENT; export XDG_RUNTIME_DIR={self.home}/s\n{command}",
        )

    @property
    def _begin(self) -> str:
        return f"linux_forbidden.begin({str(self.home)!r})"

    def _program(self, name: str, script: str) -> Path:
        path = self.home / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        return path

    def _lines(self, name: str) -> list[str]:
        record = self.home / name
        return record.read_text().splitlines() if record.exists() else []


@pytest.fixture
def illumos(pytester: pytest.Pytester) -> Iterator[IllumosRun]:
    home = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))  # sockets lie below it, and their paths may not be long
    for name in ("r", "s"):
        (home / name).mkdir(mode=0o700)
    run = IllumosRun(pytester, home)
    run._program("pfexec", 'exec "$@"')
    pytester.makeconftest(GUEST)
    pytester.makepyfile(TESTS)
    (pytester.path / "rom.fd").write_bytes(bytes(1 << 16))
    yield run
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def unused_port() -> Iterator[int]:
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


@pytest.fixture
async def guest_command() -> str:
    """Return the command of a server whose VM boots the guest micro, with any boot ROM."""
    store = ArtifactStore(ARTIFACTS)
    kernel, initrd = [await store.get(artifact, print) for artifact in (ALPINE_KERNEL, ALPINE_INITRD)]
    append = "console=ttyS0,115200 rdinit=/bin/sh -s mitigations=off norandmaps no_timer_check quiet"
    words = ["run", "--accelerator", "tcg", "--kernel", kernel, "--initrd", initrd, "--append", append, "none"]
    return f"exec {shlex.join(map(str, (SERVER, *words)))} $address"


FIRMWARE: Final = ("--propolis-guest", "firmware", "--propolis-boot-rom", "rom.fd")


def test_a_run_with_a_server_program_needs_nothing_of_linux(illumos: IllumosRun, guest_command: str) -> None:
    illumos.serve(guest_command)
    done = illumos.run(*FIRMWARE)
    assert (done.returncode, illumos.refused) == (0, []), done.stdout + done.stderr
    assert f"started in a contract: pfexec {illumos.server} run rom.fd" in illumos.started_server
    assert illumos.abandoned == 1
    assert illumos.left == []


def test_disks_are_raw_and_need_no_tools_of_qemu(illumos: IllumosRun, guest_command: str) -> None:
    illumos.serve(guest_command)
    illumos.pytester.makepyfile(DISKS)
    (illumos.pytester.path / "image.raw").write_bytes(b"content" + bytes((1 << 20) - 7))
    done = illumos.run(*FIRMWARE)
    assert (done.returncode, illumos.refused) == (0, []), done.stdout + done.stderr
    assert illumos.left == []


@pytest.mark.slow
def test_a_run_with_a_server_that_runs_already_needs_nothing_of_linux(
    illumos: IllumosRun, guest_command: str, unused_port: int
) -> None:
    illumos.serve(guest_command)
    with subprocess.Popen(
        [illumos.server, "run", "rom.fd", f"127.0.0.1:{unused_port}"], stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            while "listening on" not in server.stderr.readline():
                assert server.poll() is None
            done = illumos.run(*FIRMWARE, "--propolis-server", f"http://127.0.0.1:{unused_port}")
            assert (done.returncode, illumos.refused) == (0, []), done.stdout + done.stderr
            assert server.poll() is None
        finally:
            server.terminate()
    assert illumos.left == []


def test_what_a_killed_agent_leaves_is_removed_by_the_next_run(illumos: IllumosRun, guest_command: str) -> None:
    illumos.serve(guest_command)
    illumos.pytester.makepyfile(KILLER)
    assert illumos.run(*FIRMWARE).returncode == 9
    server = int((illumos.pytester.path / "pid").read_text())
    assert Path(f"/proc/{server}").exists(), "no kernel has ended it with its contract"
    stillborn = illumos.home / "r" / "propolis" / "0123456789abcdef-01234567"
    stillborn.mkdir(mode=0o700)
    (stillborn / "ledger.jsonl").touch(mode=0o600)
    os.utime(stillborn, (0, 0))
    illumos.pytester.makepyfile(TESTS)
    done = illumos.run(*FIRMWARE)
    assert (done.returncode, illumos.refused) == (0, []), done.stdout + done.stderr
    assert not Path(f"/proc/{server}").exists()
    assert illumos.left == []


def test_a_server_that_does_not_start_is_an_error_and_nothing_is_left(illumos: IllumosRun) -> None:
    illumos.serve("echo no /dev/vmm >&2; exit 1")
    done = illumos.run(*FIRMWARE)
    assert f"HostError: {illumos.server} ended with status 1 before it answered" in done.stdout
    assert "| no /dev/vmm" in done.stdout
    assert (illumos.refused, illumos.left) == ([], [])


def test_the_engine_is_refused_with_what_it_needs_of_linux(illumos: IllumosRun) -> None:
    done = illumos.run("--propolis-guest", "micro", "--propolis-server", "engine")
    assert "CapabilityMissing: the engine cannot run on illumos: it needs guests' memory in memfds" in done.stdout
    assert (illumos.refused, illumos.left) == ([], [])


@pytest.mark.parametrize("command", ["doctor", "ps", "gc"])
def test_commands_need_nothing_of_linux(illumos: IllumosRun, guest_command: str, command: str) -> None:
    illumos.serve(guest_command)
    options = ("--propolis-server", str(illumos.server)) if command == "doctor" else ()
    done = illumos.propolis(command, *options)
    assert (done.stderr, illumos.refused, illumos.left) == ("", [], []), done.stdout
    if command == "doctor":
        assert f"yes  {illumos.server}  answers, and has no VM; speaks API version" in done.stdout
        assert "no   engine" in done.stdout
        assert "/dev/vmm" in done.stdout


LINUX: Final = (
    "import pytest_propolis.operating_system.registry as registry; "
    "from pytest_propolis.operating_system.linux.system import linux; registry.SYSTEMS = dict(sunos5=linux)"
)


@pytest.mark.parametrize("process", ["pytest", "agent"])
def test_a_need_of_linux_in_either_process_is_found(illumos: IllumosRun, process: str) -> None:
    """The check can fail: with the implementation for Linux, its reads are refused."""
    illumos.serve("exit 1")
    done = illumos.run(*FIRMWARE, **{"before" if process == "pytest" else "in_agent": LINUX})
    assert done.returncode != 0
    assert any("/proc/" in refused for refused in illumos.refused), illumos.refused
