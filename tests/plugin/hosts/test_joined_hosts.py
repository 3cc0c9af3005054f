"""pytest with hosts that join the run, as a user runs it, on real guests."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import PLUGINS, InnerRun
from joined_machine import JoinedMachine, joined_machine
from propolis_command import COMMAND
from ssh_rig import require_rigs, ssh_rig

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


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "workers"])
def test_guests_on_a_host_that_has_joined_run_commands_and_leave_nothing(
    inner: InnerRun, workers: tuple[str, ...]
) -> None:
    write_inventory(inner, INVENTORY)
    inner.write(
        test_it="""
        import pytest

        @pytest.mark.parametrize("number", range(2))
        async def test_it(test_vm, number):
            assert test_vm.host.name == "far"
            assert await test_vm.run(f"echo {number}") == str(number)
        """
    )
    with joined_run(inner, *workers) as (run, machine):
        assert "2 passed" in run.result(), run.output.read_text()
        assert machine.output() == (0, "the run has ended\n")


@pytest.mark.slow
def test_a_guest_moves_to_a_host_that_has_joined_and_back(inner: InnerRun) -> None:
    write_inventory(inner, NEAR + INVENTORY)
    inner.write(
        test_it="""
        async def test_it(test_vm, vm_factory, remote_host):
            await test_vm.run("echo kept > /tmp/file")
            there = await vm_factory.successor(test_vm, host=remote_host)
            await there.migrate_from(test_vm)
            assert there.host.name == "far"
            assert await there.run("cat /tmp/file") == "kept"
            back = await vm_factory.successor(there, host=test_vm.host)
            await back.migrate_from(there)
            assert await back.run("cat /tmp/file") == "kept"
        """
    )
    with joined_run(inner) as (run, _machine):
        assert "1 passed" in run.result(), run.output.read_text()


@pytest.fixture
def waiting_guest(inner: InnerRun) -> None:
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


def wait_for_guest(run: ListeningRun) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not run.output.with_name("guest_runs").exists():
        assert run.process.poll() is None, run.output.read_text()
        assert time.monotonic() < deadline, run.output.read_text()
        time.sleep(0.02)


def test_a_test_whose_machine_leaves_fails_with_the_host_and_the_reason(inner: InnerRun, waiting_guest: None) -> None:
    with joined_run(inner) as (run, machine):
        wait_for_guest(run)
        machine.process.kill()
        machine.wait_until_clean(timeout_s=10.0)
        output = run.result()
    assert "host far is lost: its connection to the run was lost: its `propolis join` ended" in output
    assert "have it join the run again" in output


def test_a_machine_whose_run_is_killed_says_so_and_is_clean(inner: InnerRun, waiting_guest: None) -> None:
    with joined_run(inner) as (run, machine):
        wait_for_guest(run)
        run.process.send_signal(signal.SIGKILL)
        machine.wait_until_clean(timeout_s=10.0)
        assert machine.output() == (0, "the run has ended\n")
    deadline = time.monotonic() + TIMEOUT_S
    while inner.leavings():
        assert time.monotonic() < deadline, inner.leavings()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_machine_that_is_cut_off_is_lost_and_clean(inner: InnerRun, waiting_guest: None) -> None:
    require_rigs()
    with ssh_rig("h1") as rig, listening_run(inner, listen="10.99.0.1:0") as run:
        home = pwd.getpwuid(os.geteuid()).pw_dir
        entered = ["nsenter", "-t", str(rig.hosts["h1"].init), "-n", "-m", "-p", "-u", "env", f"HOME={home}"]
        command = run.command
        assert "propolis join 10.99.0.1:" in command
        with joined_machine(command, program=[*entered, *COMMAND]) as machine:
            machine.wait_until_joined()
            wait_for_guest(run)
            rig.cut("h1")
            output = run.result()
            assert "host far is lost: nothing was heard from it for 4 s" in output
            status, output = machine.output()
            assert status == 1
            assert "is lost: nothing was heard from it for 7 s" in output
        assert not rig.hosts["h1"].find("pytest_propolis.agent")


def test_a_run_that_no_host_joins_and_one_that_does_not_listen_are_refused(inner: InnerRun) -> None:
    inner.write(test_it="def test_it(): ...")
    write_inventory(inner, INVENTORY)
    result = inner.run("--propolis-hosts", "hosts.toml")
    result.stderr.fnmatch_lines(
        ["*far: a host of the kind joined joins a run that listens*--propolis-listen HOST:PORT*"]
    )
    write_inventory(inner, NEAR)
    result = inner.run("--propolis-hosts", "hosts.toml", "--propolis-listen", "127.0.0.1:0")
    result.stderr.fnmatch_lines(['*--propolis-listen 127.0.0.1:0: no host joins this run*kind = "joined"*'])
    result = inner.run("--propolis-listen", "7443")
    result.stderr.fnmatch_lines(["*--propolis-listen: * must be HOST:PORT, as in 192.0.2.1:7443*"])
