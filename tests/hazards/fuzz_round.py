"""A round of the leak fuzzer: one run of pytest, hit at one to three moments of its life, then an audit."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from directory_tree import paths_below
from live_run import WORDS, LiveRun, started_run
from victims import Victim

from pytest_propolis.errors import PropolisError
from pytest_propolis.ledger.ledger import read_ledger

__all__ = [
    "DISTRIBUTIONS",
    "END_TIMEOUT_S",
    "SIGNALS",
    "Kind",
    "Round",
    "audit_round",
    "let_pass",
    "one_round",
    "unhit_run",
    "wait_for_end",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
TARGETS = ("controller", "group", "worker", "agent", "qemu", "anybody")
DISTRIBUTIONS = ((), ("-n", "2"))
END_TIMEOUT_S = 300  # a guest that lost its template boots from cold, on a machine that may have much to do
CLEAN_TIMEOUT_S = 30


@dataclass(frozen=True)
class Kind:
    """The tests of a run, and its number of processes."""

    victim: Victim
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.victim.name}, {' '.join(self.arguments) or 'plain'}"


@dataclass
class Round:
    """The signals that were sent to one run, and the findings.

    :param length_s: how long the run took.
    """

    number: int
    kind: Kind
    hits: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    agent_was_killed: bool = False
    was_collected: bool = False
    output: str = ""
    length_s: float = 0.0

    def __str__(self) -> str:
        line = f"round {self.number} {self.kind}: {', '.join(self.hits) or 'nothing hit'}"
        if not self.leaks:
            return f"{line}: clean{' after gc' if self.was_collected else ''}"
        return "\n".join([f"{line}: LEAK", *(f"  {leak}" for leak in self.leaks), self.output])


def unhit_run(kind: Kind) -> float:
    """Return the duration of an undisturbed run, in seconds."""
    with _run_of(kind) as (run, _place):
        began = time.monotonic()
        status = run.wait_ended(END_TIMEOUT_S)
        assert status == 0, run.output
        return time.monotonic() - began


def one_round(number: int, kind: Kind, chance: random.Random, *, length_s: float) -> Round:
    """Send signals to one run, and audit it.

    :param length_s: how long such a run is supposed to take. Moments are drawn from that.
    """
    done = Round(number, kind)
    with _run_of(kind) as (run, place):
        began = time.monotonic()
        _hit_now_and_then(run, done, chance, length_s)
        wait_for_end(run, done)
        done.length_s = time.monotonic() - began
        audit_round(run, place, done)
        done.output = run.output
    return done


@contextlib.contextmanager
def _run_of(kind: Kind) -> Iterator[tuple[LiveRun, Path]]:
    place = Path(tempfile.mkdtemp(prefix="f-", dir="/tmp"))
    files = {"test_victim.py": kind.victim.test}
    try:
        with started_run(place, files, *kind.arguments, environment=kind.victim.environment) as run:
            yield run, place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _hit_now_and_then(run: LiveRun, done: Round, chance: random.Random, length_s: float) -> None:
    """Hit the run at one to three moments of its life."""
    began = time.monotonic()
    for moment_s in sorted(chance.uniform(0, length_s) for _ in range(chance.choice([1, 1, 2, 3]))):
        let_pass(run, began + moment_s - time.monotonic())
        run.note_runs()
        if hit := _hit(run, done, chance):
            done.hits.append(f"{hit} after {time.monotonic() - began:.2f} s")


def let_pass(run: LiveRun, delay_s: float) -> None:
    """Let time pass, but not longer than the run takes."""
    if delay_s <= 0 or run.controller.poll() is not None:
        return
    descriptor = os.pidfd_open(run.controller.pid)
    try:
        select.select([descriptor], [], [], delay_s)
    finally:
        os.close(descriptor)


def _hit(run: LiveRun, done: Round, chance: random.Random) -> str | None:
    """Send a signal to one process of the run, or its group; return a description of the target, if there was one."""
    number = chance.choice(SIGNALS)
    for target in chance.sample(TARGETS, len(TARGETS)):
        if target == "group":
            if run.controller.poll() is None:
                run.hit("group", number)
                return f"{number.name} → group"
            continue
        pids = _pids(run, target)
        if pids and (line := _send(pid := chance.choice(sorted(pids)), number, run)):
            done.agent_was_killed |= number == signal.SIGKILL and WORDS["agent"] in line
            return f"{number.name} → {target} {pid}"
    return None


def _pids(run: LiveRun, target: str) -> list[int]:
    if target == "controller":
        return [run.controller.pid]
    return [pid for pid, line in run.processes().items() if target == "anybody" or WORDS[target] in line]


def _send(pid: int, number: signal.Signals, run: LiveRun) -> str:
    """Signal a process through a descriptor, having looked again whether it is the run's: ids are used again.

    :returns: its command line, or an empty text where it was not there any more.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return ""
    try:
        line = run.processes().get(pid, "")
        if line:
            signal.pidfd_send_signal(descriptor, number)
        return line
    except ProcessLookupError:
        return ""
    finally:
        os.close(descriptor)


def wait_for_end(run: LiveRun, done: Round) -> None:
    try:
        run.wait_ended(END_TIMEOUT_S)
    except TimeoutError:
        done.leaks.append(f"the run did not end in {END_TIMEOUT_S} s")


def audit_round(run: LiveRun, place: Path, done: Round) -> None:
    """Nothing may be left, but by an agent that was killed, or by who was starting one: `propolis gc` removes that."""
    run.note_runs()
    _wait_while(lambda: bool(run.processes()))
    done.leaks += [f"process {pid}: {line}" for pid, line in run.processes().items()]
    if done.leaks:
        done.leaks.append(_explanation(run, place))
    if run.files() and (done.agent_was_killed or not _lists_anything(place)):
        _let_a_day_pass(place)
        said = run.collect_garbage()
        done.was_collected = True
        if run.files():
            done.leaks.append(f"gc said: {said}")
    done.leaks += [f"file {path}" for path in run.files()]
    done.leaks += [f"the audit finds {leak}" for leak in run.audit()]
    temporary = [path for path in paths_below(place / "tmp") if not _is_a_probe(path)]
    done.leaks += [f"temporary file {path}" for path in temporary]


def _is_a_probe(path: Path) -> bool:
    """Whether Python's `tempfile` tried out the directory with this file, which stays if the process is killed then."""
    return re.fullmatch(r"[a-z0-9_]{8}", path.name) is not None and path.is_file() and path.stat().st_size <= 4


def _lists_anything(place: Path) -> bool:
    """Whether a ledger lists what was created. Before its signal handlers are there, an agent owns only the ledger."""
    for path in (place / "propolis").glob("*/ledger.jsonl"):
        with contextlib.suppress(PropolisError, FileNotFoundError):
            if read_ledger(path).entries:
                return True
    return False


def _explanation(run: LiveRun, place: Path) -> str:
    """Return the activities that running agents report, and the ends of their logs."""
    logs = sorted((place / "propolis").glob("*/agent.log"))
    before = sum(log.stat().st_size for log in logs)
    for pid in (pid for pid, line in run.processes().items() if WORDS["agent"] in line):
        _send(pid, signal.SIGUSR1, run)
    _wait_while(lambda: sum(log.stat().st_size for log in logs) == before, timeout_s=2)
    return "\n".join(log.read_text(errors="replace") for log in logs)


def _wait_while(is_so: Callable[[], bool], *, timeout_s: float = CLEAN_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while is_so() and time.monotonic() < deadline:
        select.select([], [], [], 0.05)


def _let_a_day_pass(place: Path) -> None:
    """A directory of an agent that may be starting just now is spared for a minute."""
    for directory in (place / "propolis").iterdir():
        if directory.is_dir():
            os.utime(directory, (0, 0))
