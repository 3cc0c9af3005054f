"""Kills of what connects a run with a host that has joined it, while a guest runs there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from joined_machine import JoinedMachine
from listening_run import INVENTORY, NEAR, ListeningRun, joined_run, write_inventory, write_waiting_test

SILENT = "nothing was heard from it for 4 s"

TARGETS = {
    "the machine's command": "its `propolis join` ended",
    "listener": "the run's listener ended",
    "link process": "the link process on this machine ended",
    "agent": "its agent ended with status -9",
    "watchdog": "its watchdog ended, and the agent with it",
}


def processes_of(run: ListeningRun) -> Iterator[tuple[int, str]]:
    """Yield the processes that the run's process has started, and their command lines."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == run.process.pid:
                yield int(path.name), (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def victim(target: str, run: ListeningRun, machine: JoinedMachine, *, has_guest: bool = True) -> int:
    assert machine.pids("qemu-system") or not has_guest, "its guest is not there"
    if target == "the machine's command":
        return machine.process.pid
    words = {
        "listener": "pytest_propolis.hosts.joined.listener",
        "link process": "pytest_propolis.hosts.ssh.link",
        "agent": "pytest_propolis.agent",
        "watchdog": "-I -S -c import sys;",
    }[target]
    agent = machine.pids("pytest_propolis.agent")
    if target in ("agent", "watchdog"):
        found = agent if target == "agent" else [pid for pid in machine.pids(words) if pid not in agent]
    else:
        found = [pid for pid, line in processes_of(run) if words in line]
    assert len(found) == 1, (found, machine.processes(), *processes_of(run))
    return found[0]


@pytest.fixture
def waiting_guest(inner: InnerRun) -> None:
    write_waiting_test(inner)


@pytest.mark.parametrize("target", TARGETS)
def test_the_host_is_clean_and_the_test_fails_with_the_reason_when(
    inner: InnerRun, waiting_guest: None, target: str
) -> None:
    with joined_run(inner) as (run, machine):
        run.wait_for_guest()
        os.kill(victim(target, run, machine), signal.SIGKILL)
        machine.wait_until_clean(timeout_s=15.0)
        output = run.result()
        assert "host far is lost: " in output
        assert TARGETS[target] in output
        assert "1 failed" in output
        ended = machine.output()
    if target in ("the machine's command", "listener"):
        assert ended[0] != 0
    else:
        assert ended == (0, "the run has ended\n")
    inner.wait_until_clean()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["the machine's command", "listener", "link process"])
def test_the_host_is_clean_and_the_test_fails_when_it_hangs(inner: InnerRun, waiting_guest: None, target: str) -> None:
    with joined_run(inner) as (run, machine):
        run.wait_for_guest()
        pid = victim(target, run, machine)
        os.kill(pid, signal.SIGSTOP)
        if target == "link process":  # its clients are told nothing, and the host hears nothing
            machine.wait_until_clean(timeout_s=30.0)
            os.kill(pid, signal.SIGCONT)
            assert "host far is lost: " in run.result()
        else:
            run.wait_for(SILENT)
            machine.wait_until_clean(timeout_s=30.0)
            os.kill(pid, signal.SIGCONT)
            run.result()
        machine.output()
    inner.wait_until_clean()


MIGRATION = """
import asyncio, pathlib

import pytest
from pytest_propolis import DataDisk, PropolisError

async def until(phase, source):
    gen = 0
    while True:
        state = await source.client.instance_state_monitor(gen)
        out = state.migration.migration_out
        if out and out.state.value == phase or state.state.value in ("Destroyed", "Failed"):
            return
        gen = state.gen + 1

@pytest.mark.multi_node(2)
async def test_it(vm_factory, remote_hosts):
    hosts = {host.name: host for host in remote_hosts}
    here, there = hosts["SOURCE"], hosts["TARGET"]
    disk = DataDisk(name="data", size_mib=96)
    source = await vm_factory.start("source", guest="micro", memory_mib=192, host=here, disks=(disk,))
    await source.run("modprobe virtio_blk; dd if=/dev/urandom of=/dev/vda bs=1M count=24 2>/dev/null")
    target = await vm_factory.successor(source, "target", host=there)
    migrating = asyncio.create_task(target.migrate_from(source))
    await asyncio.wait([asyncio.create_task(until("PHASE", source)), migrating], return_when=asyncio.FIRST_COMPLETED)
    pathlib.Path("guest_runs").touch()
    (outcome,) = await asyncio.gather(migrating, return_exceptions=True)
    assert outcome is None or isinstance(outcome, PropolisError), outcome
    if here.name == "near":
        out = (await source.get_migration_report()).migration_out
        stays = None if out and out.handed_over else source
    else:
        stays = target if outcome is None else None
    if stays is not None:
        await stays.wait_for_state("Running")
        assert await stays.run("echo alive", timeout_s=30) == "alive"
    elif here.name == "far":
        await target.wait_for_state("Failed")
    pathlib.Path("settled").write_text("the guest is near" if stays else "the guest is lost")
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["RamPush", "Finish"])
@pytest.mark.parametrize("source", ["near", "far"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_guest_that_migrates_is_on_one_side_at_most_and_the_host_is_clean_when_this_is_killed(
    inner: InnerRun, target: str, source: str, phase: str
) -> None:
    write_inventory(inner, INVENTORY + NEAR)
    text = MIGRATION.replace("SOURCE", source).replace("TARGET", "far" if source == "near" else "near")
    inner.write(test_it=text.replace("PHASE", phase))
    with joined_run(inner) as (run, machine):
        run.wait_for_guest()
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim(target, run, machine, has_guest=False), signal.SIGKILL)
        output = run.result()
        machine.wait_until_clean(timeout_s=15.0)
        assert (inner.pytester.path / "settled").exists(), output
        if phase == "RamPush" and source == "near":
            assert (inner.pytester.path / "settled").read_text() == "the guest is near", output
        machine.output()
    inner.wait_until_clean()
