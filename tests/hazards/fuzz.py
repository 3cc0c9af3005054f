"""The leak fuzzer: random signals at random moments to random processes of a real run, then an audit.

``python tests/hazards/fuzz.py --rounds 1000 --seed 1``
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from live_run import LiveRun, started_run

__all__ = ["Round", "fuzz"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
TARGETS = ("controller", "group", "worker", "agent", "qemu", "anybody")
END_TIMEOUT_S = 90
CLEAN_TIMEOUT_S = 30
LEDGER = "ledger"
DISTRIBUTIONS = ((), ("-n", "2"))

# The VMs are created and never run: their QEMU is there and costs little.
TEST = """
import pytest
from pytest_propolis import DataDisk, PropolisError

@pytest.mark.parametrize("number", range(3))
async def test_victim(vm_factory, number):
    for name in ("first", "second"):
        vm = await vm_factory.create(name, guest="micro", disks=(DataDisk(name="data", size_mib=1),))
        await vm.ensure()
    with pytest.raises(PropolisError):
        await vm.wait_for_serial_output("this never comes", timeout_s=0.3)
"""


@dataclass
class Round:
    """What was done to one run, and what was found then."""

    number: int
    arguments: tuple[str, ...]
    hits: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    was_collected: bool = False
    output: str = ""

    def __str__(self) -> str:
        line = f"round {self.number} {' '.join(self.arguments) or 'plain'}: {', '.join(self.hits) or 'nothing hit'}"
        if not self.leaks:
            return f"{line}: clean{' after gc' if self.was_collected else ''}"
        return "\n".join([f"{line}: LEAK", *(f"  {leak}" for leak in self.leaks), self.output])


@dataclass(frozen=True)
class Campaign:
    """What all rounds share.

    :param lengths_s: how long a run takes here that nobody hits, by its arguments. Moments are drawn from that.
    """

    seed: int
    deadline: float
    lengths_s: dict[tuple[str, ...], float]

    def round(self, number: int) -> Round | None:
        """One round, unless it is too late to begin."""
        if time.monotonic() > self.deadline:
            return None
        chance = random.Random(f"{self.seed}-{number}")
        done = Round(number, chance.choice(DISTRIBUTIONS))
        with _place() as place, started_run(place, {"test_victim.py": TEST}, *done.arguments) as run:
            _hit_now_and_then(run, done, chance, self.lengths_s[done.arguments])
            _audit(run, place, done)
            done.output = run.output
        return done


def fuzz(*, rounds: int, seed: int, first: int = 1, limit_s: float = float("inf"), at_once: int = 2) -> Iterator[Round]:
    """Rounds, in order; each depends on the seed and its number alone, but for the machine's moods.

    :param limit_s: no round begins later.
    :param at_once: so many rounds go on at the same time.
    """
    deadline = time.monotonic() + limit_s
    with ThreadPoolExecutor(at_once) as pool:
        lengths = dict(zip(DISTRIBUTIONS, pool.map(_length_of, DISTRIBUTIONS), strict=True))
        campaign = Campaign(seed, deadline, lengths)
        try:
            for done in pool.map(campaign.round, range(first, first + rounds)):
                if done is not None:
                    yield done
        finally:
            pool.shutdown(cancel_futures=True)


def _length_of(arguments: tuple[str, ...]) -> float:
    """How long a run takes."""
    began = time.monotonic()
    with _place() as place, started_run(place, {"test_victim.py": TEST}, *arguments) as run:
        status = run.wait_ended(END_TIMEOUT_S)
        assert status == 0, run.output
    return time.monotonic() - began


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="f-", dir="/tmp"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _hit_now_and_then(run: LiveRun, done: Round, chance: random.Random, length_s: float) -> None:
    """Hit the run at one to three moments of its life."""
    began = time.monotonic()
    for moment_s in sorted(chance.uniform(0, length_s) for _ in range(chance.choice([1, 1, 2, 3]))):
        _pass(run, began + moment_s - time.monotonic())
        run.note_runs()
        if hit := _hit(run, chance):
            done.hits.append(f"{hit} after {time.monotonic() - began:.2f} s")


def _pass(run: LiveRun, delay_s: float) -> None:
    """Let time pass, but not longer than the run takes."""
    if delay_s <= 0 or run.controller.poll() is not None:
        return
    descriptor = os.pidfd_open(run.controller.pid)
    try:
        select.select([descriptor], [], [], delay_s)
    finally:
        os.close(descriptor)


def _hit(run: LiveRun, chance: random.Random) -> str | None:
    """Send one of the signals to one process of the run, or its group; says what was hit, if anything was there."""
    target, number = chance.choice(TARGETS), chance.choice(SIGNALS)
    if target == "group":
        if run.controller.poll() is not None:
            return None
        run.hit("group", number)
        return f"{number.name} → group"
    pids = [run.controller.pid] if target == "controller" else _pids(run, target)
    if not pids or not _send(pid := chance.choice(sorted(pids)), number, run):
        return None
    return f"{number.name} → {target} {pid}"


def _pids(run: LiveRun, target: str) -> list[int]:
    if target == "anybody":
        return list(run.processes())
    with contextlib.suppress(StopIteration):
        return [run.pid_of(target)]
    return []


def _send(pid: int, number: signal.Signals, run: LiveRun) -> bool:
    """Signal a process through a descriptor, having looked again whether it is the run's: ids are used again."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if pid not in run.processes():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _audit(run: LiveRun, place: Path, done: Round) -> None:
    """Nothing may be left, but by an agent that was hit, or by who was starting one: `propolis gc` removes that."""
    try:
        run.wait_ended(END_TIMEOUT_S)
    except TimeoutError:
        done.leaks.append(f"the run did not end in {END_TIMEOUT_S} s")
    _wait_while(lambda: bool(run.processes() or run.files()) and not _is_dead_ground(run))
    done.leaks += [f"process {pid}: {line}" for pid, line in run.processes().items()]
    if done.leaks:
        done.leaks.append(_explanation(run, place))
    agent_was_hit = any("agent" in hit or "anybody" in hit for hit in done.hits)
    if run.files() and (agent_was_hit or not any(LEDGER in Path(path).name for path in run.files())):
        _let_a_day_pass(place)
        said = run.collect_garbage()
        done.was_collected = True
        if run.files():
            done.leaks.append(f"gc said: {said}")
    done.leaks += [f"file {path}" for path in run.files()]
    done.leaks += [f"the audit finds {leak}" for leak in run.audit()]
    done.leaks += [f"temporary file {path}" for path in sorted((place / "tmp").rglob("*"))]


def _explanation(run: LiveRun, place: Path) -> str:
    """What agents that are still there say they are doing, and what their logs said before."""
    logs = sorted((place / "propolis").glob("*/agent.log"))
    before = sum(log.stat().st_size for log in logs)
    for pid in (pid for pid, line in run.processes().items() if "pytest_propolis.agent" in line):
        _send(pid, signal.SIGUSR1, run)
    _wait_while(lambda: sum(log.stat().st_size for log in logs) == before, timeout_s=2)
    return "\n".join(log.read_text(errors="replace") for log in logs)


def _wait_while(is_so: Callable[[], bool], *, timeout_s: float = CLEAN_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while is_so() and time.monotonic() < deadline:
        select.select([], [], [], 0.05)


def _is_dead_ground(run: LiveRun) -> bool:
    """Whether nobody is there any more who could remove what is left."""
    return not run.processes()


def _let_a_day_pass(place: Path) -> None:
    """A directory of an agent that may be starting just now is spared for a minute."""
    for directory in (place / "propolis").iterdir():
        if directory.is_dir():
            os.utime(directory, (0, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the number of the first round, to repeat one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round later than this")
    parser.add_argument("--at-once", type=int, default=2, help="so many rounds go on at the same time")
    options = parser.parse_args()
    found: Counter[str] = Counter()
    rounds = fuzz(
        rounds=options.rounds,
        seed=options.seed,
        first=options.first,
        limit_s=options.minutes * 60,
        at_once=options.at_once,
    )
    for done in rounds:
        found.update(rounds=1, leaks=bool(done.leaks), collected=done.was_collected, unhit=not done.hits)
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()
    sys.stdout.write(f"seed {options.seed}: {dict(found)}\n")
    return 1 if found["leaks"] else 0


if __name__ == "__main__":
    sys.exit(main())
