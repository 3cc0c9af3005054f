"""The identity of a process: alive, dead, somebody else's, and never signalled by mistake."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.ledger.identity import ProcessIdentity, find_tagged

Start = Callable[..., "subprocess.Popen[bytes]"]

LEADER_EXITS = """
import ctypes, threading
started = threading.Event()
def work():
    started.set()
    threading.Event().wait()
threading.Thread(target=work).start()
started.wait()
print("ready", flush=True)
EXIT_THREAD = 60
ctypes.CDLL(None).syscall(EXIT_THREAD, 0)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs that end with the test."""
    with ExitStack() as stack:

        def start_one(*command: str, **options: object) -> subprocess.Popen[bytes]:
            process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)  # type: ignore[call-overload]
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_one


def assert_echoes(process: subprocess.Popen[bytes]) -> None:
    """A `cat` answers, so no signal has ended it."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"still here\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"still here\n"


def test_this_process_is_alive() -> None:
    me = ProcessIdentity.current()
    assert me.pid == os.getpid()
    assert me.is_alive()


def test_an_identity_survives_json_and_a_ledger_entrys_facts() -> None:
    me = ProcessIdentity.current()
    assert msgspec.json.decode(msgspec.json.encode(me), type=ProcessIdentity) == me
    assert ProcessIdentity.from_facts(me.facts()) == me


@pytest.mark.parametrize("facts", [{}, {"pid": "1"}, {"pid": "x", "start_time": "1", "boot_id": "b"}])
def test_facts_that_do_not_name_one_process_name_none(facts: dict[str, str]) -> None:
    assert ProcessIdentity.from_facts(facts) is None


def test_a_pid_that_nobody_has_has_no_identity(start: Start) -> None:
    process = start("true")
    process.wait()
    with pytest.raises(ProcessLookupError, match=str(process.pid)):
        ProcessIdentity.of(process.pid)


def test_a_process_that_was_reaped_is_dead(start: Start) -> None:
    process = start("sleep", "1000")
    identity = ProcessIdentity.of(process.pid)
    assert identity.is_alive()
    process.kill()
    process.wait()
    assert not identity.is_alive()


def test_a_zombie_is_dead(start: Start) -> None:
    process = start("sleep", "1000")
    identity = ProcessIdentity.of(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ProcessIdentity.of(process.pid) == identity
    assert not identity.is_alive()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="uses a system call by its x86-64 number")
def test_a_zombie_whose_other_threads_run_is_alive(start: Start) -> None:
    process = start(sys.executable, "-c", LEADER_EXITS, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    identity = ProcessIdentity.of(process.pid)
    while b"State:\tZ" not in Path(f"/proc/{process.pid}/status").read_bytes():
        os.sched_yield()
    assert identity.is_alive()
    assert identity.kill()
    assert identity.wait_gone(10)
    assert not identity.is_alive()


def test_another_start_time_means_that_the_pid_was_recycled() -> None:
    me = ProcessIdentity.current()
    assert me.start_time is not None
    assert not replace(me, start_time=me.start_time + 1).is_alive()


def test_whoever_lived_before_the_last_boot_is_dead() -> None:
    assert not replace(ProcessIdentity.current(), boot_id="another boot").is_alive()


@pytest.mark.parametrize("unreadable", [{"start_time": None}, {"boot_id": ""}, {"pid_namespace": ""}])
def test_what_cannot_be_compared_counts_as_alive(unreadable: dict[str, str | None]) -> None:
    assert replace(ProcessIdentity.current(), **unreadable).is_alive()


def test_a_pid_of_another_namespace_counts_as_alive(start: Start) -> None:
    process = start("true")
    identity = replace(ProcessIdentity.of(process.pid), pid_namespace="pid:[1]")
    process.wait()
    assert identity.is_alive()
    with pytest.raises(CapabilityMissing, match="cannot be told"):
        identity.kill()


def test_a_program_cannot_forge_its_fields_by_its_name(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to(shutil.which("sleep") or "sleep")
    process = start(str(program), "1000")
    assert ProcessIdentity.of(process.pid).is_alive()
    assert b"a) Z 1 (b" in Path(f"/proc/{process.pid}/stat").read_bytes()


def test_kill_ends_the_process_once(start: Start) -> None:
    process = start("sleep", "1000")
    identity = ProcessIdentity.of(process.pid)
    assert identity.kill()
    assert identity.wait_gone(10)
    assert process.wait() == -signal.SIGKILL
    assert not identity.kill()


def test_kill_never_hits_the_process_that_got_the_pid(start: Start) -> None:
    process = start("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    identity = ProcessIdentity.of(process.pid)
    assert identity.start_time is not None
    former = replace(identity, start_time=identity.start_time - 1)
    assert not former.kill()
    assert former.wait_gone(0)
    assert_echoes(process)


def test_kill_refuses_when_it_cannot_tell_who_it_is(start: Start) -> None:
    process = start("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with pytest.raises(CapabilityMissing, match=str(process.pid)) as caught:
        replace(ProcessIdentity.of(process.pid), start_time=None).kill()
    assert caught.value.hint
    assert_echoes(process)


def test_waiting_for_the_end_is_bounded(start: Start) -> None:
    identity = ProcessIdentity.of(start("sleep", "1000").pid)
    assert not identity.wait_gone(0.01)


def test_a_marked_process_is_found_by_its_environment_and_by_its_command_line(start: Start) -> None:
    tag = secrets.token_hex(16)
    by_environment = start("cat", stdin=subprocess.PIPE, env=os.environ | {"PROPOLIS_MARK": tag})
    by_command_line = start("sh", "-c", "read line", tag, stdin=subprocess.PIPE)
    start("cat", stdin=subprocess.PIPE)
    assert {process.pid for process in find_tagged(tag)} == {by_environment.pid, by_command_line.pid}


def test_a_dead_process_is_not_found_by_its_mark(start: Start) -> None:
    tag = secrets.token_hex(16)
    process = start("cat", stdin=subprocess.PIPE, env={"PROPOLIS_MARK": tag})
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert find_tagged(tag) == []


def test_whoever_looks_for_a_mark_never_finds_itself_or_its_ancestors(start: Start) -> None:
    tag = secrets.token_hex(16)
    script = f"from pytest_propolis.ledger.identity import find_tagged; print(find_tagged({tag!r}))"
    # The trailing command keeps the shell, which carries the mark as well, from becoming the child itself.
    process = start("sh", "-c", '"$0" -c "$1"; true', sys.executable, script, stdout=subprocess.PIPE)
    assert process.communicate()[0] == b"[]\n"
