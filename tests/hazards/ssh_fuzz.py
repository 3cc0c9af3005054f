"""The leak fuzzer for runs on two SSH hosts: kills and cuts of what connects them, then an audit of all machines.

``python tests/hazards/ssh_fuzz.py --rounds 50 --seed 1``, with the directories of ``tests/support`` in PYTHONPATH
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fuzz_round import END_TIMEOUT_S, SIGNALS, Kind, Round, audit_round, let_pass, wait_for_end
from live_run import LiveRun, started_run
from ssh_rig import SshRig, inventory_of, require_clean, ssh_rig
from victims import Victim

__all__ = ["fuzz_ssh_hosts"]

FORKED = """
import pytest

@pytest.mark.multi_node(2)
async def test_victim(vm_factory, remote_hosts):
    for host in remote_hosts:
        vm = await vm_factory.start(f"vm-{host.name}", guest="micro", memory_mib=128, host=host)
        assert await vm.run("echo up") == "up"
"""

MIGRATED = """
import pytest

@pytest.mark.multi_node(2)
async def test_victim(vm_factory, remote_hosts):
    here, there = remote_hosts
    source = await vm_factory.start("source", guest="micro", memory_mib=128, host=here)
    target = await vm_factory.successor(source, "target", host=there)
    await target.migrate_from(source)
    assert await target.run("echo up") == "up"
"""

NETWORKED = """
import pytest
from pytest_propolis import Nic

@pytest.mark.multi_node(2)
async def test_victim(vm_factory, remote_hosts):
    lan = vm_factory.network("lan")
    here, there = [
        await vm_factory.start(f"vm-{host.name}", guest="micro", memory_mib=128, host=host, nics=(Nic(network=lan),))
        for host in remote_hosts
    ]
    await here.run(f"ping -c 1 -W 20 {there.address(lan)}", timeout_s=60)
"""

KINDS = tuple(
    Kind(Victim(name, test), ())
    for name, test in (("forked", FORKED), ("migrated", MIGRATED), ("networked", NETWORKED))
)

AT_HOSTS = {
    "sshd": ("sshd: ",),
    "watchdog": (" -I -S -c import sys;",),
    "remote agent": ("pytest_propolis.agent",),
    "remote qemu": ("qemu-system",),
}
"""What the command lines of a host's processes contain."""

TARGETS = ("controller", "group", "link process", "link", *AT_HOSTS)

LINK_WORD = "pytest_propolis.hosts.ssh.link"


def fuzz_ssh_hosts(*, rounds: int, seed: int, first: int = 1, limit_s: float = float("inf")) -> Iterator[Round]:
    """Rounds at the same two hosts, one after the other; each depends on the seed and its number alone.

    :param limit_s: no round begins later.
    """
    deadline = time.monotonic() + limit_s
    lengths_s: dict[Kind, float] = {}
    with ssh_rig("h1", "h2") as rig:
        for number in range(first, first + rounds):
            if time.monotonic() > deadline:
                return
            chance = random.Random(f"{seed}-{number}")
            kind = chance.choice(KINDS)
            if kind not in lengths_s:
                lengths_s[kind] = _unhit_run(rig, kind)
            yield _one_round(rig, number, kind, chance, length_s=lengths_s[kind])


def _unhit_run(rig: SshRig, kind: Kind) -> float:
    """Return the duration of an undisturbed run, in seconds."""
    with _run_of(rig, kind) as (run, _):
        began = time.monotonic()
        assert run.wait_ended(END_TIMEOUT_S) == 0, run.output
        return time.monotonic() - began


def _one_round(rig: SshRig, number: int, kind: Kind, chance: random.Random, *, length_s: float) -> Round:
    done = Round(number, kind)
    cut: set[str] = set()
    killed_hard = False
    with _run_of(rig, kind) as (run, place):
        began = time.monotonic()
        for moment_s in sorted(chance.uniform(0, length_s) for _ in range(chance.choice([1, 1, 2]))):
            let_pass(run, began + moment_s - time.monotonic())
            run.note_runs()
            if hit := _hit(rig, run, cut, chance):
                done.hits.append(f"{hit} after {time.monotonic() - began:.2f} s")
                killed_hard |= hit.startswith(("SIGKILL → remote agent", "SIGKILL → watchdog"))
        wait_for_end(run, done)
        for host in cut:
            rig.mend(host)
        done.length_s = time.monotonic() - began
        audit_round(run, place, done)
        if (left := _left_at_hosts(rig)) and killed_hard:
            run.command("gc", "--hosts", str(place / "hosts.toml"))
            done.was_collected = True
            left = _left_at_hosts(rig)
        done.leaks += left
        done.output = run.output
    return done


@contextlib.contextmanager
def _run_of(rig: SshRig, kind: Kind) -> Iterator[tuple[LiveRun, Path]]:
    place = Path(tempfile.mkdtemp(prefix="f-", dir="/tmp"))
    try:
        (place / "hosts.toml").write_text(inventory_of(rig))
        files = {"test_victim.py": kind.victim.test}
        with started_run(place, files, "--propolis-hosts", str(place / "hosts.toml")) as run:
            yield run, place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _hit(rig: SshRig, run: LiveRun, cut: set[str], chance: random.Random) -> str | None:
    """Kill one part of the run, or cut a host off; return a description, if there was anything to hit."""
    if run.controller.poll() is not None:
        return None
    number = chance.choice(SIGNALS)
    for target in chance.sample(TARGETS, len(TARGETS)):
        host = chance.choice(sorted(rig.hosts))
        with contextlib.suppress(ProcessLookupError):
            if target in ("controller", "group"):
                run.hit(target, number)
                return f"{number.name} → {target}"
            if target == "link":
                rig.cut(host)
                cut.add(host)
                return f"link of {host} cut"
            if target == "link process":
                pids = [pid for pid, line in run.processes().items() if LINK_WORD in line]
            else:
                pids = rig.hosts[host].find(*AT_HOSTS[target])
            if pids:
                os.kill(pid := chance.choice(sorted(pids)), number)
                return f"{number.name} → {target} {pid}"
    return None


def _left_at_hosts(rig: SshRig) -> list[str]:
    try:
        require_clean(rig)
    except AssertionError as error:
        return [f"at the hosts: {error}"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="the number of the first round, to go on or repeat one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no round later than this")
    options = parser.parse_args()
    leaks = 0
    for done in fuzz_ssh_hosts(
        rounds=options.rounds, seed=options.seed, first=options.first, limit_s=options.minutes * 60
    ):
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()
        leaks += bool(done.leaks)
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
