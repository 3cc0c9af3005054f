"""Guests that migrate between SSH hosts, as a user's tests have them do it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import memory_writer
import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, require_clean, require_rigs, ssh_rig

DISKS = """
mkdir -p {home}/.cache/propolis/artifacts/disks
mount -t tmpfs -o mode=700,size=160m disks {home}/.cache/propolis/artifacts/disks
"""
"""Shell commands that give each host a small file system for disks."""

EXAMPLE = Path(__file__).parents[3] / "example_tests/test_hosts.py"


@pytest.fixture(scope="module")
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2", mounts=DISKS) as made:
        yield made


@pytest.mark.slow
def test_the_example_of_a_guest_that_moves_between_hosts_passes(inner: InnerRun, rig: SshRig, hosts: Path) -> None:
    inner.write(test_it=EXAMPLE.read_text())
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=3)
    assert {name: host.processes() for name, host in rig.hosts.items()} == {"h1": {}, "h2": {}}
    assert {host.run("ls", "/run/propolis") for host in rig.hosts.values()} == {""}


FAULTS = """
import asyncio, contextlib, os, re, subprocess

import pytest
from pytest_propolis import DataDisk, HostLost, PropolisError
from pytest_propolis.propolis_api import MigrationState

DISKS = "$HOME/.cache/propolis/artifacts/disks"
NEIGHBOUR = "ip neigh replace 10.99.0.11 dev eth0 nud permanent lladdr 02:00:00:00:00:01"

async def kill(target):
    await target.host.run(f"pkill -KILL -f '[q]emu-system.*{target.id}'; true")

async def fill(target):  # all but 40 MiB: enough for a disk to be created
    await target.host.run(f"dd if=/dev/zero of={DISKS}/filler bs=1M count=120")

async def misdirect(target):  # what this host sends to the other one is lost, and its connection to this machine stays
    await target.host.run(NEIGHBOUR)

async def pull(target):
    entered = ["nsenter", "-t", os.environ["RIG_SWITCH"], "-n"]
    subprocess.run([*entered, "ip", "link", "set", target.host.name, "down"], check=True)

async def until_memory_moves(source):
    gen = 0
    while not (way := (state := await source.client.instance_state_monitor(gen)).migration.migration_out) or (
        way.state is not MigrationState.RAM_PUSH
    ):
        gen = state.gen + 1

@pytest.mark.parametrize("fault, reason", [
    (kill, ".*"), (fill, "(?s).*No space left on device"), (misdirect, ".*"), (pull, ".*")
])
async def test_it(vm_factory, remote_hosts, fault, reason):
    here, there = sorted(remote_hosts, key=lambda host: host.name)
    with contextlib.suppress(HostLost):  # the test before has lost it
        await there.run("true")
    disk = DataDisk(name="data", size_mib=96)
    source = await vm_factory.start("source", memory_mib=192, host=here, disks=(disk,))
    await source.run("modprobe virtio_blk; dd if=/dev/urandom of=/dev/vda bs=1M count=64")
    target = await vm_factory.successor(source, host=there)
    if fault is fill:
        await fill(target)
    migrating = asyncio.create_task(target.migrate_from(source))
    if fault is not fill:
        await until_memory_moves(source)
        await there.run("test -S /run/propolis/*/direct-*.sock")
        await fault(target)
    with pytest.raises(PropolisError) as raised:
        await migrating
    assert re.match(reason, str(raised.value)), raised.value
    await source.wait_for_state("Running")
    assert await source.run("echo here") == "here"
    if fault is pull:
        entered = ["nsenter", "-t", os.environ["RIG_SWITCH"], "-n"]
        subprocess.run([*entered, "ip", "link", "set", there.name, "up"], check=True)
    else:
        await there.run(f"rm -f {DISKS}/filler; ip neigh del 10.99.0.11 dev eth0 || true")
"""


@pytest.mark.slow
def test_a_guest_whose_target_is_lost_on_the_way_runs_on_and_nothing_is_left_there(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIG_SWITCH", str(rig.switch.pid))
    inner.write(test_it=FAULTS)
    # The teardown of a test whose host is lost says so.
    inner.run("--propolis-hosts", str(hosts), "-p", "no:randomly").assert_outcomes(passed=4, errors=1)
    require_clean(rig)


WRITER = """
import pytest
from memory_writer import found_damage, rounds_beyond, start_writing
from pytest_propolis import InstanceState

@pytest.mark.parametrize("boot", ["cold", "warm"])
async def test_it(vm_factory, remote_hosts, boot):
    here, there = remote_hosts
    vm = await vm_factory.start("writer", guest="micro", cpus=1, memory_mib=128, boot=boot, host=here)
    await start_writing(vm)
    n = await rounds_beyond(vm, 10)
    for hop, host in enumerate((there, here, there)):
        target = await vm_factory.successor(vm, f"hop{hop}", host=host)
        await target.migrate_from(vm)
        await target.wait_for_state(InstanceState.RUNNING)
        vm = target
        came = (await vm.get_migration_report()).migration_in
        assert came.memory_transfer in ("live", "copied-ahead" if (boot, hop) == ("warm", 0) else "copied-in-passes")
        n = await rounds_beyond(vm, n + 10)
        assert await found_damage(vm) == ""
"""


@pytest.mark.slow
def test_the_memory_of_a_guest_that_writes_all_the_while_arrives_intact_at_another_host(
    inner: InnerRun, rig: SshRig, hosts: Path
) -> None:
    """That of a fork is in no file of its own, so it is copied another way on the first of three migrations."""
    inner.write(test_it=WRITER, memory_writer=Path(memory_writer.__file__).read_text())
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=2)
    require_clean(rig)


AGENTS = """
import asyncio, contextlib

import pytest
from pytest_propolis import DataDisk, HostLost, PropolisError
from pytest_propolis.propolis_api import MigrationState

async def until_memory_moves(source):
    gen = 0
    while not (way := (state := await source.client.instance_state_monitor(gen)).migration.migration_out) or (
        way.state is not MigrationState.RAM_PUSH
    ):
        gen = state.gen + 1

@pytest.mark.parametrize("killed", ["target", "source"])
async def test_it(vm_factory, remote_hosts, killed):
    here, there = sorted(remote_hosts, key=lambda host: host.name)
    for host in (here, there):
        with contextlib.suppress(HostLost):  # the test before has lost it
            await host.run("true")
    disk = DataDisk(name="data", size_mib=96)
    source = await vm_factory.start("source", memory_mib=192, host=here, disks=(disk,))
    await source.run("modprobe virtio_blk; dd if=/dev/urandom of=/dev/vda bs=1M count=64")
    target = await vm_factory.successor(source, host=there)
    migrating = asyncio.create_task(target.migrate_from(source))
    await until_memory_moves(source)
    lost, stays = (there, here) if killed == "target" else (here, there)
    with contextlib.suppress(HostLost):
        await lost.run("pkill -KILL -f '[p]ytest_propolis.agent'; true")
    with pytest.raises(PropolisError):
        await migrating
    if killed == "target":
        await source.wait_for_state("Running")
        assert await source.run("echo here") == "here"
    else:
        await target.wait_for_state("Failed")
        assert await stays.run("pgrep -f '[q]emu-system' || echo none") == "none"
        with pytest.raises(HostLost, match="host h1 is lost: its agent ended"):
            await source.run("true")
"""


@pytest.mark.slow
def test_a_guest_is_on_one_side_at_most_when_an_agent_is_killed_on_the_way(
    inner: InnerRun, rig: SshRig, hosts: Path
) -> None:
    inner.write(test_it=AGENTS)
    outcomes = inner.run("--propolis-hosts", str(hosts), "-p", "no:randomly").parseoutcomes()
    assert outcomes["passed"] == 2, outcomes
    assert outcomes.keys() <= {"passed", "errors", "warnings"}  # a lost host is also an error of a teardown
    require_clean(rig)


VOLUMES = """
import pytest
from pytest_propolis import ConfigError

async def test_it(crucible_disk_factory, vm_factory, remote_hosts):
    here, there = remote_hosts
    disk = await crucible_disk_factory(size_mib=64)
    near, far = (here, there) if disk.host is here else (there, here)
    source = await vm_factory.start("source", memory_mib=192, host=near, disks=(disk,))
    refusal = f"crucible disk '.*' is on host {near.name}, and VMs on {far.name} cannot reach it"
    with pytest.raises(ConfigError, match=refusal):
        await vm_factory.successor(source, host=far)
    assert disk.generation == 1
    unused = await crucible_disk_factory("unused", size_mib=64)
    with pytest.raises(ConfigError, match=refusal):
        await vm_factory.start("other", memory_mib=192, host=far, disks=(unused,))
    await source.run("modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done; echo a >/dev/vda")
"""


@pytest.mark.slow
def test_a_volume_that_a_host_cannot_reach_is_refused_before_anything_is_done(
    inner: InnerRun, rig: SshRig, hosts: Path
) -> None:
    inner.write(test_it=VOLUMES)
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=1)


NODE = """
import asyncio

import pytest
from pytest_propolis import InstanceState

@pytest.mark.multi_node(2)
async def test_it(vm_factory, remote_hosts, nodes, kv, barrier):
    here, there = remote_hosts
    vm = await vm_factory.start("first", guest="micro", host=here)
    async with vm.as_node(nodes):
        await vm.run("(barrier ready 2 && kv put passed yes) </dev/null >/dev/null 2>&1 &")
        async with asyncio.timeout(60):
            await nodes.mirror.until(lambda: nodes.mirror.below("barriers/ready/at/1/") or None, on=("",))
        for name, host in (("second", there), ("third", here)):
            successor = await vm_factory.successor(vm, name, host=host)
            await successor.migrate_from(vm)
            await successor.wait_for_state(InstanceState.RUNNING)
            vm = successor
            assert await vm.run(f"kv put at {name}; kv get at") == name
        assert await barrier("ready", 2) == 1
        assert await kv.wait("passed") == b"yes"
"""


@pytest.mark.slow
def test_a_guest_that_moves_between_ssh_hosts_is_the_same_node(inner: InnerRun, rig: SshRig, hosts: Path) -> None:
    inner.write(test_it=NODE)
    inner.run("--propolis-hosts", str(hosts)).assert_outcomes(passed=1)


def test_a_guest_that_moves_between_hosts_of_this_machine_is_the_same_node(inner: InnerRun) -> None:
    inner.write(test_it=NODE)
    inner.run("--propolis-hosts", "local:2").assert_outcomes(passed=1)
