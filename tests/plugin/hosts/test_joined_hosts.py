"""pytest with hosts that join the run, as a user runs it, on real guests."""

from __future__ import annotations

import os
import pwd
import signal

import pytest
from inner_run import InnerRun
from joined_machine import joined_machine
from listening_run import INVENTORY, NEAR, joined_run, listening_run, write_inventory, write_waiting_test
from propolis_command import COMMAND
from ssh_rig import require_rigs, ssh_rig


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
    write_waiting_test(inner)


def test_a_test_whose_machine_leaves_fails_with_the_host_and_the_reason(inner: InnerRun, waiting_guest: None) -> None:
    with joined_run(inner) as (run, machine):
        run.wait_for_guest()
        machine.process.kill()
        machine.wait_until_clean(timeout_s=10.0)
        output = run.result()
    assert "host far is lost: its connection to the run was lost: its `propolis join` ended" in output
    assert "have it join the run again" in output


def test_a_machine_whose_run_is_killed_says_so_and_is_clean(inner: InnerRun, waiting_guest: None) -> None:
    with joined_run(inner) as (run, machine):
        run.wait_for_guest()
        run.process.send_signal(signal.SIGKILL)
        machine.wait_until_clean(timeout_s=10.0)
        assert machine.output() == (0, "the run has ended\n")
    inner.wait_until_clean()


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
            run.wait_for_guest()
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
