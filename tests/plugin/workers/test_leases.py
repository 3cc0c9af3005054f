"""Runs that share hosts take turns at them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from etcd_rig import etcd_cluster, require_etcd
from inner_run import InnerRun
from ssh_rig import SshRig, require_clean, require_rigs, ssh_rig

from pytest_propolis.coordination.backends.address import connect_store

pytestmark = pytest.mark.usefixtures("no_autoload")

HOLDING = """
import os, pytest

def test_it():
    open("running", "w").close()
    os.read(0, 1)
"""

ON_BOTH_HOSTS = """
import asyncio
from pathlib import Path
import pytest

@pytest.mark.multi_node(2)
async def test_it(remote_hosts, vm_factory):
    for host in remote_hosts:
        await vm_factory.start(host.name, host=host)
    Path("running").touch()
    await asyncio.Event().wait()
"""

ON_ONE_HOST = """
async def test_other(test_vm):
    assert await test_vm.host.run("hostname") == "h2"
"""

COMMAND = (
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "propolis",
    "-s",
    "-p",
    "no:cacheprovider",
)

WITH_WORKERS = ("-p", "asyncio", "-p", "xdist", "-n", "1")


@contextmanager
def run(place: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, "--propolis-leases", place, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout
    return next(line for line in process.stdout if words in line)


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_a_run_waits_for_another_one_and_says_for_which(inner: InnerRun, ends: str) -> None:
    inner.write(test_it=HOLDING, test_other="def test_other(): pass\n")
    take_turns("leases", "this-machine", "(pid FIRST), which has it since ", ends)


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_runs_take_turns_in_etcd(inner: InnerRun, ends: str) -> None:
    require_etcd()
    inner.write(test_it=HOLDING, test_other="def test_other(): pass\n")
    machine = socket.gethostname()

    async def cluster() -> None:
        async with etcd_cluster() as etcd:
            place = f"etcd://{etcd.hosts}"
            await asyncio.to_thread(take_turns, place, machine, f"(pid FIRST on {machine}), which has it since ", ends)
            async with contextlib.aclosing(await connect_store(place)) as backend:
                assert await backend.read("") == {}

    asyncio.run(cluster())


def take_turns(place: str, host: str, description: str, ends: str) -> None:
    """Have a second run wait for the host of the first, until that one ends."""
    with run(place, "test_it.py") as first:
        while not Path("running").exists():
            assert first.poll() is None
        with run(place, "test_other.py", "--propolis-hosts", "local:2") as second:
            line = line_with(second, f"waiting for host {host}: the run of ")
            assert f"in {Path.cwd()} {description.replace('FIRST', str(first.pid))}" in line
            if ends == "killed":
                os.kill(first.pid, signal.SIGKILL)
            else:
                assert first.stdin
                first.stdin.write("\n")
                first.stdin.flush()
            line_with(second, f"host {host} is free now")
            line_with(second, "1 passed")
            assert second.wait(60) == 0


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


def wait_for_ssh_host(place: str, inventory: Path) -> None:
    """Have a second run wait for one SSH host of the first, which it names otherwise, until the first is killed."""
    other = inventory.with_name("other.toml")
    _, _, table = inventory.read_text().partition("[hosts.h2]")
    other.write_text(f'[hosts.other]\naddress = "h2"{table.replace("hosts.h2.options", "hosts.other.options")}')
    with run(place, "test_it.py", "--propolis-hosts", str(inventory), *WITH_WORKERS) as first:
        while not Path("running").exists():
            assert first.poll() is None
        with run(place, "test_other.py", "--propolis-hosts", str(other), *WITH_WORKERS) as second:
            line = line_with(second, "waiting for host ssh-h2: the run of ")
            assert f"(pid {first.pid}" in line
            assert first.poll() is second.poll() is None
            os.kill(first.pid, signal.SIGKILL)
            line_with(second, "host ssh-h2 is free now")
            line_with(second, "1 passed")
            assert second.wait(60) == 0


@pytest.mark.slow
def test_a_run_waits_for_an_ssh_host_of_another_one_until_that_is_killed(
    inner: InnerRun, rig: SshRig, hosts: Path
) -> None:
    inner.write(test_it=ON_BOTH_HOSTS, test_other=ON_ONE_HOST)
    wait_for_ssh_host("leases", hosts)
    assert {path.name for path in Path("leases").iterdir()} == {"ssh-h1.lock", "ssh-h1.json", "ssh-h2.lock"}
    require_clean(rig)


@pytest.mark.slow
def test_a_run_waits_in_etcd_for_an_ssh_host_of_another_one_until_that_is_killed(
    inner: InnerRun, rig: SshRig, hosts: Path
) -> None:
    require_etcd()
    inner.write(test_it=ON_BOTH_HOSTS, test_other=ON_ONE_HOST)

    async def cluster() -> None:
        async with etcd_cluster() as etcd:
            await asyncio.to_thread(wait_for_ssh_host, f"etcd://{etcd.hosts}", hosts)

    asyncio.run(cluster())
    require_clean(rig)


def test_runs_in_turn_leave_no_lease_taken(inner: InnerRun) -> None:
    inner.write(test_it="def test_it(): pass\n")
    for arguments in ((), ("-n", "1")):
        result = inner.run("--propolis-leases", "leases", *arguments)
        result.assert_outcomes(passed=1)
        assert "waiting for host" not in result.stdout.str()
    assert [path.name for path in (inner.pytester.path / "leases").iterdir()] == ["this-machine.lock"]


def test_a_directory_that_cannot_be_made_ends_the_run(inner: InnerRun) -> None:
    inner.write(test_it="def test_it(): pass\n")
    result = inner.run("--propolis-leases", "/proc/leases")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--propolis-leases /proc/leases: No such file or directory*"])
