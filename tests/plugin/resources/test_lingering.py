"""With --propolis-linger the agent of a run stays for the next one, and nothing else of the run does."""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import propolis_command
import pytest
from inner_run import InnerRun
from leaking_test import LEAKS_A_PROCESS
from propolis_command import propolis

import pytest_propolis
from pytest_propolis.ledger.identity import ProcessIdentity
from pytest_propolis.ledger.survey import RunSurvey, survey

WAIT_S = 60
LINGER = "--propolis-linger=600"

HELLO = """
from pytest_propolis import DataDisk

async def test_hello(vm_factory):
    lan = vm_factory.network("lan")
    vm = await vm_factory.start("vm", disks=(DataDisk(name="data", size_mib=1),))
    assert await vm.run("echo hello") == "hello"

async def test_again(test_vm):
    assert await test_vm.run("echo again") == "again"
"""

CREATES = """
async def test_it(vm_factory):
    await vm_factory.create()
"""

USES_THE_AGENT_MEANWHILE = """
from propolis_command import propolis
from pytest_propolis.ledger.survey import survey
from pytest_propolis.hosts.run_directory import base_directory

async def test_it(vm_factory):
    await vm_factory.create()
    (agent,) = survey(base_directory())
    pid = agent.contents.header.agent.pid
    assert f"left the agent {pid}: it has clients, and leaves with the last one" in propolis("gc", "--agents")
    await vm_factory.create("second")
"""


@pytest.fixture
def lingering(inner: InnerRun) -> Iterator[InnerRun]:
    """Runs pytest as `inner` does; agents that linger are ended before that looks for leavings."""
    inner.write(test_it=HELLO)
    yield inner
    propolis("gc", "--agents")


def agents(run: InnerRun) -> list[RunSurvey]:
    return [found for found in survey(run.runtime / "propolis") if found.is_alive]


def pids(run: InnerRun) -> list[int]:
    return sorted(found.contents.header.agent.pid for found in agents(run) if found.contents)


def pid_after(run: InnerRun, *arguments: str) -> int:
    """The pid of the only agent, after a run that passed."""
    result = run.run(LINGER, *arguments)
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    (pid,) = pids(run)
    return pid


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.02)


def test_the_next_run_uses_the_same_agent_and_only_that_stays(lingering: InnerRun) -> None:
    first = pid_after(lingering)
    assert pid_after(lingering, "-n", "2") == first
    assert pid_after(lingering, "--lf", "-k", "again") == first
    (agent,) = agents(lingering)
    assert agent.contents
    owners = {entry.owner.client for entry in agent.contents.entries.values()}
    assert owners <= {"standby", "agent"}, "clients have left nothing"


def test_a_quiet_run_does_not_mention_the_agent_and_a_verbose_one_does(lingering: InnerRun) -> None:
    quiet, verbose = lingering.run(LINGER), lingering.run(LINGER, "-v")
    (pid,) = pids(lingering)
    line = f"propolis: the agent (pid {pid}) stays for 600 s: `propolis gc --agents` ends it"
    assert line not in quiet.stdout.str()
    assert line in verbose.stdout.lines


def test_forks_stand_by_for_the_next_run(lingering: InnerRun) -> None:
    pid_after(lingering, "--propolis-standby=1")
    wait_until(lambda: "standby" in propolis("ps"), "a fork stands by")
    result = lingering.run(LINGER, "--propolis-standby=1")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    "arguments", [("--propolis-standby=0",), ("--propolis-accelerator=tcg",)], ids=["standby", "accelerator"]
)
def test_a_run_with_other_options_starts_its_own_agent(lingering: InnerRun, arguments: tuple[str, ...]) -> None:
    lingering.write(test_it=CREATES)
    first = pid_after(lingering)
    assert lingering.run(LINGER, *arguments).ret == pytest.ExitCode.OK
    assert len(pids(lingering)) == 2
    assert first in pids(lingering)


def test_a_run_without_the_option_leaves_a_lingering_agent_alone_and_leaves_nothing(lingering: InnerRun) -> None:
    lingering.write(test_it=CREATES)
    first = pid_after(lingering)
    before = {found.directory for found in agents(lingering)}
    assert lingering.run().ret == pytest.ExitCode.OK
    assert pids(lingering) == [first]
    assert {found.directory for found in agents(lingering)} == before


def test_an_agent_has_the_environment_of_its_runs(lingering: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    lingering.write(test_it=CREATES)
    first = pid_after(lingering)
    monkeypatch.setenv("PWD", "/elsewhere")
    monkeypatch.setenv("TERM", "of another terminal")
    assert pid_after(lingering) == first
    monkeypatch.setenv("SOMETHING_THAT_A_SERVER_PROGRAM_READS", "1")
    assert lingering.run(LINGER).ret == pytest.ExitCode.OK
    (other,) = set(pids(lingering)) - {first}
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in (first, other)]
    assert [b"SOMETHING_THAT_A_SERVER_PROGRAM_READS=1" in environment for environment in environments] == [False, True]


def test_what_a_test_does_to_its_environment_does_not_reach_the_agent(lingering: InnerRun) -> None:
    lingering.write(
        test_it="import pytest\n\n@pytest.fixture\ndef changed(monkeypatch):\n"
        "    monkeypatch.setenv('OF_ONE_TEST', '1')\n\n"
        "async def test_it(changed, vm_factory):\n    await vm_factory.create()\n"
    )
    pid = pid_after(lingering)
    assert b"OF_ONE_TEST" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_conftest_files_may_change_the_environment_of_all_processes(lingering: InnerRun) -> None:
    lingering.write(
        test_it=CREATES,
        conftest="import os\n\ndef pytest_configure(config):\n    os.environ['OF_ALL_TESTS'] = '1'\n",
    )
    pid = pid_after(lingering)
    assert pid_after(lingering, "-n", "1") == pid
    assert b"OF_ALL_TESTS=1" in Path(f"/proc/{pid}/environ").read_bytes()


def test_an_agent_leaves_after_its_time(inner: InnerRun) -> None:
    inner.write(test_it=CREATES)
    result = inner.run("--propolis-linger=0.2")
    assert result.ret == pytest.ExitCode.OK
    wait_until(lambda: not inner.leavings(), "nothing is left")


def test_ps_lists_an_agent_that_lingers_and_gc_ends_it_on_request(inner: InnerRun) -> None:
    inner.write(test_it=HELLO)
    pid = pid_after(inner)
    assert f"pid {pid}, without clients; stays for " in propolis("ps")
    assert f"would end the agent {pid}" in propolis("gc", "--agents", "--dry-run")
    propolis("gc")
    assert pids(inner) == [pid], "without --agents it is left alone"
    assert f"ended the agent {pid}" in propolis("gc", "--agents")
    assert inner.leavings() == []


def test_an_agent_in_use_is_left_to_its_run_and_then_leaves(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(propolis_command.__file__).parent))
    inner.write(test_it=USES_THE_AGENT_MEANWHILE)
    result = inner.run(LINGER)
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    wait_until(lambda: not inner.leavings(), "nothing is left")


def test_an_agent_that_keeps_vms_stays_for_these(lingering: InnerRun) -> None:
    lingering.write(test_it=CREATES)
    pid = pid_after(lingering, "--propolis-keep=always")
    assert f"left the agent {pid}: it keeps VMs" in propolis("gc", "--agents")
    assert pids(lingering) == [pid]
    propolis("gc", "--kept")
    wait_until(lambda: not lingering.leavings(), "nothing is left")


def test_what_a_run_leaves_behind_fails_it_although_the_agent_may_stay(
    lingering: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = lingering.pytester.path / "stray"
    monkeypatch.setenv("STRAY", str(note))
    lingering.write(test_it=LEAKS_A_PROCESS)
    result = lingering.run(LINGER)
    stray = ProcessIdentity.of(int(note.read_text()))
    try:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*this run has left something behind*", f"process {stray.pid} (*"])
    finally:
        stray.kill()


def test_when_qemu_has_changed_the_next_run_gets_a_new_agent(lingering: InnerRun) -> None:
    lingering.write(test_it=CREATES)
    program = lingering.pytester.path / "qemu"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("qemu-system-x86_64")} "$@"\n')
    program.chmod(0o700)
    qemu = (f"--propolis-qemu={program}", "--propolis-accelerator=tcg")
    first = pid_after(lingering, *qemu)
    assert pid_after(lingering, *qemu) == first
    program.write_text(program.read_text() + "# upgraded\n")
    assert lingering.run(LINGER, *qemu).ret == pytest.ExitCode.OK
    wait_until(lambda: len(pids(lingering)) == 1, "the old agent has left")
    assert pids(lingering) != [first]


@pytest.mark.slow
def test_when_the_code_has_changed_the_next_run_gets_a_new_agent(
    lingering: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    lingering.write(test_it=CREATES)
    package = Path(pytest_propolis.__file__).parent
    copied = lingering.pytester.path / "source" / "pytest_propolis"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(copied.parent))
    first = pid_after(lingering)
    assert str(copied.parent).encode() in Path(f"/proc/{first}/cmdline").read_bytes()
    assert pid_after(lingering) == first
    with (copied / "agent" / "budget.py").open("a") as module:
        module.write("# edited\n")
    assert lingering.run(LINGER).ret == pytest.ExitCode.OK
    wait_until(lambda: len(pids(lingering)) == 1, "the old agent has left")
    assert pids(lingering) != [first]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_an_agent_that_lingers(inner: InnerRun, number: signal.Signals) -> None:
    inner.write(test_it=HELLO)
    os.kill(pid_after(inner, "--propolis-standby=1"), number)
    wait_until(lambda: not inner.leavings(), "nothing is left")


@pytest.mark.parametrize("value", ["-1", "soon", "inf", "nan"])
def test_a_time_that_cannot_be_is_refused(inner: InnerRun, value: str) -> None:
    result = inner.run(f"--propolis-linger={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--propolis-linger: '{value}' must be *seconds*"])
