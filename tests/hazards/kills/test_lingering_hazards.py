"""Agents that linger are killed, ended, and found by several runs at once: nothing is lost, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_run import LiveRun, started_run

from pytest_propolis.hosts.agent_clients.synchronous import AgentClient
from pytest_propolis.hosts.lifeline import Lifeline
from pytest_propolis.hosts.local import LocalHost
from pytest_propolis.hosts.run_directory import run_token
from pytest_propolis.ledger.survey import survey
from pytest_propolis.settings import Settings

LINGER = "--propolis-linger=600"
STANDBY = "--propolis-standby=1"
STANDBY_TIMEOUT_S = 30

FORKS = """
async def test_forks(vm_factory):
    vm = await vm_factory.start("vm", guest="micro")
    assert await vm.run("echo up") == "up"
"""

STAYS = """
import asyncio, os
from pathlib import Path

async def test_stays(vm_factory):
    vm = await vm_factory.create("vm", guest="micro")
    await vm.ensure()
    Path(os.environ["TMPDIR"], "up").touch()
    async with asyncio.timeout(120):
        while not Path(os.environ["TMPDIR"], "go-on").exists():
            await asyncio.sleep(0.02)
    assert (await vm.get_state()).value == "Creating"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="l-", dir="/tmp") as name:
        yield Path(name)


def agents(place: Path) -> list[int]:
    found = [run.contents for run in survey(place / "propolis") if run.is_alive and run.contents]
    return sorted(contents.header.agent.pid for contents in found)


def run_to_its_end(place: Path, name: str, test: str = FORKS, *arguments: str) -> LiveRun:
    """A run in the same runtime directory as others, which has passed."""
    (place / name).mkdir()
    environment = {"XDG_RUNTIME_DIR": str(place), "TMPDIR": str(place)}
    with started_run(place / name, {"test_it.py": test}, LINGER, *arguments, environment=environment) as run:
        assert run.controller.wait(120) == pytest.ExitCode.OK, run.output
    return run


def stands_by(run: LiveRun) -> bool:
    """Wait for a while until a fork stands by; return whether one does."""
    deadline = time.monotonic() + STANDBY_TIMEOUT_S
    while not (found := any("qemu-system" in line for line in run.processes().values())):
        if time.monotonic() > deadline:
            break
        select.select([], [], [], 0.02)
    return found


@pytest.fixture
def everything(place: Path) -> Iterator[LiveRun]:
    """Looks at all that belongs to runs in the directory, which is ended after the test."""
    (place / "propolis").mkdir(mode=0o700)
    with started_run(place, {"test_it.py": FORKS}, LINGER, STANDBY) as run:
        assert run.controller.wait(120) == pytest.ExitCode.OK, run.output
        if not stands_by(run):  # under load a fork may not have been made; the next claim has it made again
            run_to_its_end(place, "again", FORKS, STANDBY)
            run.wait_for("qemu")
        run.note_runs()
        yield run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_agent_that_lingers_ends_in_order_by_a_signal(everything: LiveRun, number: signal.Signals) -> None:
    everything.hit("agent", number)
    everything.wait_until_clean()


def test_gc_removes_what_a_killed_agent_that_lingered_leaves(everything: LiveRun) -> None:
    everything.hit("agent", signal.SIGKILL)
    everything.wait_until(lambda: not everything.processes())
    assert everything.files(), "a dead agent cannot have removed its directory"
    assert "removed" in everything.collect_garbage()
    everything.wait_until_clean()


def test_the_next_run_starts_anew_after_an_agent_was_killed_and_removes_what_that_left(
    everything: LiveRun, place: Path
) -> None:
    (before,) = survey(place / "propolis")
    everything.hit("agent", signal.SIGKILL)
    everything.wait_until(lambda: not everything.processes())
    run_to_its_end(place, "next")
    assert not before.directory.exists()
    everything.command("gc", "--agents")
    everything.wait_until_clean()


def test_a_killed_fork_that_stood_by_is_not_given_to_the_next_run(everything: LiveRun, place: Path) -> None:
    everything.hit("qemu", signal.SIGKILL)
    run_to_its_end(place, "next", FORKS, STANDBY)
    everything.command("gc", "--agents")
    everything.wait_until_clean()


def test_gc_leaves_an_agent_that_lingers_alone(everything: LiveRun, place: Path) -> None:
    (pid,) = agents(place)
    said = everything.collect_garbage()
    assert "removed" not in said
    assert agents(place) == [pid]
    everything.command("gc", "--agents")
    everything.wait_until_clean()


def test_an_agent_that_does_not_answer_is_named_with_a_remedy(everything: LiveRun, place: Path) -> None:
    (pid,) = agents(place)
    (directory,) = (run.directory for run in survey(place / "propolis"))
    (directory / "agent.sock").unlink()
    said = everything.command("gc", "--agents")
    assert f"could not end the agent {pid}" in said
    assert f"kill {pid}" in said
    os.kill(pid, signal.SIGTERM)
    everything.wait_until_clean()


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_a_killed_run_leaves_the_agent_alone_and_nothing_else(place: Path, workers: tuple[str, ...]) -> None:
    with started_run(place, {"test_it.py": STAYS}, LINGER, *workers) as run:
        run.wait_until(lambda: (run.scratch / "up").exists())
        run.note_runs()
        os.killpg(run.controller.pid, signal.SIGKILL)
        run.controller.wait()
        run.wait_until(lambda: [line for line in run.processes().values() if "agent" not in line] == [])
        (pid,) = agents(place)
        assert list(run.processes()) == [pid]
        run.wait_until(lambda: entries(place) == [])
        run.command("gc", "--agents")
        run.wait_until_clean()


def entries(place: Path) -> list[str]:
    found = [run.contents for run in survey(place / "propolis") if run.contents]
    owners = [entry.owner.client for contents in found for entry in contents.entries.values()]
    return [owner for owner in owners if owner not in ("standby", "agent")]


def test_two_runs_at_once_share_an_agent_and_neither_takes_the_others_vms_for_leaks(place: Path) -> None:
    (place / "first").mkdir()
    runtime = {"XDG_RUNTIME_DIR": str(place)}
    with started_run(place / "first", {"test_it.py": STAYS}, LINGER, environment=runtime | tmp(place)) as first:
        first.wait_until(lambda: (place / "up").exists())
        run_to_its_end(place, "second", FORKS)
        assert len(agents(place)) == 1
        (place / "go-on").touch()
        assert first.controller.wait(120) == pytest.ExitCode.OK, first.output
    with started_run(place, {"test_it.py": FORKS}, LINGER, environment=tmp(place)) as last:
        assert last.controller.wait(120) == pytest.ExitCode.OK, last.output
        last.command("gc", "--agents")
        last.wait_until_clean()


def tmp(place: Path) -> dict[str, str]:
    """The same TMPDIR for all runs: it belongs to the environment of their agent."""
    return {"TMPDIR": str(place)}


@pytest.fixture
def settings(place: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return Settings(linger=600.0, standby=0)


async def gone(place: Path) -> None:
    async with asyncio.timeout(60):
        while [path for path in (place / "propolis").iterdir() if path.is_dir()]:
            await asyncio.sleep(0.02)


async def test_runs_that_start_in_the_moment_when_an_agent_ends_get_one(place: Path, settings: Settings) -> None:
    for _ in range(8):
        before = LocalHost(settings, run_id=run_token(None))
        await (await before.client()).aclose()
        assert before.directory
        client = AgentClient(before.directory / "agent.sock")
        await asyncio.to_thread(before.close)
        runs = [LocalHost(settings, run_id=run_token(None)) for _ in range(2)]
        starting = [asyncio.create_task(used(host)) for host in runs]
        await asyncio.to_thread(client.end_lingering)
        found = await asyncio.gather(*starting)  # the old one, if the run came first, or a new one
        assert [await used(host) for host in runs] == found, "an agent that has taken a run stays for it"
        for host in runs:
            await asyncio.to_thread(host.close)
    for run in survey(place / "propolis"):
        if run.is_alive and run.contents:
            run.contents.header.agent.kill(signal.SIGTERM)
    await gone(place)


async def used(host: LocalHost) -> int:
    """Return the pid of a host's agent."""
    async with await host.client() as client:
        return (await client.info()).pid


async def test_many_processes_of_many_runs_start_one_agent(place: Path, settings: Settings) -> None:
    before = set(Lifeline.all_open())
    hosts = [LocalHost(settings, run_id=run_token(None)) for _ in range(6)]
    assert len(set(await asyncio.gather(*map(used, hosts)))) == 1
    for host in hosts:
        await asyncio.to_thread(host.close)
    assert set(Lifeline.all_open()) == before
    (run,) = survey(place / "propolis")
    assert run.contents
    assert run.contents.header.lingers
    await asyncio.to_thread(AgentClient(run.directory / "agent.sock").end_lingering)
    await gone(place)
