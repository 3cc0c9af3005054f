"""Kills of a VM's processes on an SSH host while the guest runs: the error names the host, and nothing is left."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, require_rigs, ssh_rig

CLEAN_TIMEOUT_S = 60.0

KILLS = """
import contextlib, os, signal
from pathlib import Path

import pytest
from pytest_propolis import HostLost

def find(space, *words):
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace")
            there = (path / "ns/pid").readlink() == space and path.name != os.environ["RIG_H1"]
            if there and all(word in line for word in words):
                yield int(path.name)

HERE = Path("/proc/self/ns/pid").readlink()
THERE = Path(f"/proc/{os.environ['RIG_H1']}/ns/pid").readlink()
RUNTIME = os.environ["XDG_RUNTIME_DIR"]

TARGETS = {
    "link process": lambda: find(HERE, "pytest_propolis.hosts.ssh.link", RUNTIME),
    "remote agent": lambda: find(THERE, "pytest_propolis.agent"),
    "hanging agent": lambda: find(THERE, "pytest_propolis.agent"),
}

@pytest.mark.parametrize("target", TARGETS)
async def test_it(vm_factory, target):
    vm = await vm_factory.start(memory_mib=128)
    assert vm.host.name == "h1"
    victims = list(TARGETS[target]())
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGSTOP if target == "hanging agent" else signal.SIGKILL)
    if target == "hanging agent":  # it answers no more, and is killed when its host hears nothing of this machine
        for pid in TARGETS["link process"]():
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(HostLost, match="host h1 is lost"):
        await vm.run("sleep 500", timeout_s=400)
"""


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1") as made:
        yield made


def test_a_host_is_clean_after_any_part_of_its_connection_was_killed(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = rig.hosts["h1"]
    monkeypatch.setenv("RIG_H1", str(host.init))
    inner.write(test_it=KILLS)
    outcomes = inner.run("--propolis-hosts", str(hosts), "-p", "no:randomly").parseoutcomes()
    assert outcomes["passed"] == 3, outcomes
    assert outcomes.keys() <= {"passed", "errors", "warnings"}  # a lost host is also an error of a teardown
    deadline = time.monotonic() + CLEAN_TIMEOUT_S
    while left := [line for line in host.processes().values() if not line.startswith("sshd: ")]:
        assert time.monotonic() < deadline, left
        select.select([], [], [], 0.1)
    assert host.run("ls", "/run/propolis") == ""
