"""Faults at each phase of a migration between SSH hosts: the guest is on one side, and nothing is left on the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, require_clean, require_rigs, ssh_rig

PHASES = ["Sync", "RamPush", "Pause", "Device", "Finish"]

FAULTS = """
import asyncio, contextlib, os, signal, subprocess
from pathlib import Path

import pytest
from pytest_propolis import DataDisk, HostLost, PropolisError

PHASE = os.environ["PHASE"]
# Each has those that may have come before it was looked at; the source publishes RamPush again after Device.
LATER = {
    "Sync": {"Sync", "RamPush", "Pause", "RamPushDirty", "Device", "Server", "Finish"},
    "RamPush": {"RamPush", "Pause", "RamPushDirty", "Device", "Server", "Finish"},
    "Pause": {"Pause", "RamPushDirty", "Device", "Server", "Finish"},
    "Device": {"Device", "Server", "Finish"},
    "Finish": {"Finish"},
}
SPACES = {name: Path(f"/proc/{os.environ[f'RIG_{name}']}/ns/pid").readlink() for name in ("h1", "h2")}
IN_SWITCH = ["nsenter", "-t", os.environ["RIG_SWITCH"], "-n"]
SETTLED_S = 40

def find(host, *words):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace")
            if (path / "ns/pid").readlink() == SPACES[host] and all(word in line for word in words):
                found.append(int(path.name))
    return found

def kill(*pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

def cable(host, state):
    subprocess.run([*IN_SWITCH, "ip", "link", "set", host, state], check=True)

async def until(phase, source):
    gen = 0
    while True:
        state = await source.client.instance_state_monitor(gen)
        out = state.migration.migration_out
        if out and out.state.value in LATER[phase]:
            return out.state.value
        if state.state.value in ("Destroyed", "Failed"):  # it was missed
            return state.state.value
        gen = state.gen + 1

async def settled(good):
    async with asyncio.timeout(SETTLED_S):
        while not good():
            await asyncio.sleep(0.1)

@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("fault", ["QEMU is killed", "agent is killed", "cable is out"])
async def test_it(vm_factory, remote_hosts, fault, side):
    here, there = sorted(remote_hosts, key=lambda host: host.name)
    for host in (here, there):
        with contextlib.suppress(HostLost):  # the test before has lost it
            await host.run("true")
    disk = DataDisk(name="data", size_mib=96)
    source = await vm_factory.start("source", memory_mib=192, boot="cold", host=here, disks=(disk,))
    await source.run("modprobe virtio_blk; dd if=/dev/urandom of=/dev/vda bs=1M count=24 2>/dev/null")
    target = await vm_factory.successor(source, host=there)
    victim, vm = (here.name, source) if side == "source" else (there.name, target)
    agents = find(victim, "pytest_propolis.agent")
    migrating = asyncio.create_task(target.migrate_from(source))
    reached = asyncio.create_task(until(PHASE, source))
    await asyncio.wait([reached, migrating], return_when=asyncio.FIRST_COMPLETED)
    seen = reached.result() if reached.done() else "missed"
    reached.cancel()
    if fault == "QEMU is killed":
        await settled(lambda: find(victim, "qemu-system", vm.id) or migrating.done())
        kill(*find(victim, "qemu-system", vm.id))
    elif fault == "agent is killed":
        kill(*agents)
    else:
        cable(victim, "down")
    try:
        (outcome,) = await asyncio.gather(migrating, return_exceptions=True)
        assert outcome is None or isinstance(outcome, PropolisError), outcome
        target_is_lost = side == "target" and fault != "QEMU is killed"
        handed_over = None
        if side == "target" or fault == "QEMU is killed":
            out = (await source.get_migration_report()).migration_out
            handed_over = out is not None and out.handed_over
        print(f"FAULT {PHASE} ({seen}): {fault} at the {side}: handed over {handed_over}, outcome {outcome!r:.150}")
        if handed_over is False and not (side == "source" and fault == "QEMU is killed"):
            await source.wait_for_state("Running")
            assert await source.run("echo here", timeout_s=30) == "here"
            await settled(lambda: not find(there.name, "qemu-system", target.id))
            assert find(here.name, "qemu-system", source.id)
        elif outcome is None and not target_is_lost and not (side == "target" and fault == "QEMU is killed"):
            await target.wait_for_state("Running")
            assert await target.run("echo there", timeout_s=30) == "there"
            await settled(lambda: not find(here.name, "qemu-system", source.id))
            assert find(there.name, "qemu-system", target.id)
        else:  # the guest was on the side that is lost
            assert outcome is not None or target_is_lost or fault == "QEMU is killed"
            await settled(lambda: not find(here.name, "qemu-system", source.id))
            await settled(lambda: not find(there.name, "qemu-system", target.id))
    finally:
        if fault == "cable is out":
            await settled(lambda: not find(victim, "pytest_propolis.agent"))
            cable(victim, "up")
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_the_guest_is_on_one_side_and_nothing_is_left_on_the_other_when_something_is_lost(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setenv("PHASE", phase)
    monkeypatch.setenv("RIG_SWITCH", str(rig.switch.pid))
    for name, host in rig.hosts.items():
        monkeypatch.setenv(f"RIG_{name}", str(host.init))
    inner.write(test_it=FAULTS)
    outcomes = inner.run("--propolis-hosts", str(hosts), "-p", "no:randomly", "-s").parseoutcomes()
    assert outcomes["passed"] + outcomes.get("skipped", 0) == 6, outcomes
    assert outcomes.keys() <= {"passed", "skipped", "errors", "warnings"}  # a lost host is also an error of a teardown
    require_clean(rig)
