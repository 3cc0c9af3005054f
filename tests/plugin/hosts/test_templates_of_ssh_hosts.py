"""Templates of SSH hosts: one host makes it, and the others fetch it from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from ssh_rig import SshRig, inventory_of, require_clean, require_rigs, ssh_rig


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


FORKS = """
import asyncio, os
from pytest_propolis import DataDisk

async def test_it(vm_factory, remote_hosts):
    here, there = sorted(remote_hosts, key=lambda host: host.name)
    disks = (DataDisk(name="data", size_mib=16),)
    first = await vm_factory.start("first", host=here, disks=disks)
    others = await asyncio.gather(*(
        vm_factory.start(f"other-{number}", host=there, disks=disks) for number in range(2)
    ))
    assert [vm.boot_kind for vm in (first, *others)] == ["warm"] * 3
    disk = "/dev/vdb" if os.environ["PROPOLIS_GUEST"] == "alpine" else "/dev/vda"
    for vm in (first, *others):
        assert await vm.run("hostname") == vm.name
        await vm.run(f"modprobe virtio_blk; echo {vm.name} > {disk}; sync; touch /root/{vm.name}")
    for vm in (first, *others):
        assert await vm.run(f"head -n 1 {disk}; ls /root") == f"{vm.name}\\n{vm.name}"
    await others[0].reset()
    await others[0].wait_to_boot()
    assert await others[0].run(f"modprobe virtio_blk; head -n 1 {disk}") == "other-0"
"""


@pytest.mark.parametrize("guest", ["micro", "alpine"])
def test_a_template_is_made_at_one_host_and_fetched_by_the_other(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch, guest: str
) -> None:
    monkeypatch.setenv("PROPOLIS_GUEST", guest)
    inner.write(test_it=FORKS)
    result = inner.run("--propolis-hosts", str(hosts), "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            f"propolis: making a template of {guest} (*)",
            f"propolis: host h2: the template of {guest} (*) comes from h1",
            f"propolis: making a template of {guest} (*) from the files of another host's",
        ]
    )
    text = result.stdout.str()
    assert text.count(f"the template of {guest}") == 1
    assert text.count("propolis: making a template") == 2
    require_clean(rig)


LOST = """
import os, signal, threading
from pathlib import Path

PARTS = Path(os.environ["RIG_H2_HOME"], ".cache/propolis/files")

def agents(host):
    space = Path(f"/proc/{os.environ[f'RIG_{host}']}/ns/pid").readlink()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"pytest_propolis.agent" in (path / "cmdline").read_bytes() and (path / "ns/pid").readlink() == space:
                yield int(path.name)
        except OSError:
            pass

def kill_in_the_middle(pids, killed):
    while not any(part.stat().st_size for part in PARTS.glob("*/.memory.content.part")):
        pass
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    killed.set()

async def test_it(vm_factory, remote_hosts):
    here, there = sorted(remote_hosts, key=lambda host: host.name)
    await vm_factory.start("first", host=here)
    killed = threading.Event()
    threading.Thread(target=kill_in_the_middle, args=(list(agents("h1")), killed), daemon=True).start()
    vm = await vm_factory.start("second", host=there)
    assert killed.is_set()
    assert vm.boot_kind == "warm"
    assert await vm.run("hostname") == "second"
"""


def test_a_host_makes_its_own_template_when_the_other_is_lost_while_it_sends(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIG_H2_HOME", str(rig.hosts["h2"].home))
    monkeypatch.setenv("RIG_h1", str(rig.hosts["h1"].init))
    inner.write(test_it=LOST)
    result = inner.run("--propolis-hosts", str(hosts), "-s")
    assert result.parseoutcomes()["passed"] == 1  # the teardown at the lost host is an error
    result.stdout.fnmatch_lines(["*host h2: the template of micro * comes from h1"])
    assert result.stdout.str().count("propolis: making a template of micro") == 2
    require_clean(rig)


DAMAGED = """
import os
from pathlib import Path

async def test_it(vm_factory, remote_hosts):
    here, there = sorted(remote_hosts, key=lambda host: host.name)
    await vm_factory.start("first", host=here)
    store = Path(os.environ["RIG_H1_HOME"], ".cache/propolis/artifacts/templates/derived")
    (state,) = store.glob("*/state")
    state.write_bytes(bytes(state.stat().st_size))
    vm = await vm_factory.start("second", host=there)
    assert vm.boot_kind == "warm"
    assert await vm.run("hostname") == "second"
"""


def test_a_damaged_template_is_not_passed_on(
    inner: InnerRun, rig: SshRig, hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIG_H1_HOME", str(rig.hosts["h1"].home))
    inner.write(test_it=DAMAGED)
    result = inner.run("--propolis-hosts", str(hosts), "-s")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*the template of micro * comes from h1")


def test_hosts_that_are_not_to_reach_each_other_make_their_own_templates(
    inner: InnerRun, rig: SshRig, hosts: Path
) -> None:
    hosts.write_text(inventory_of(rig, direct=False))
    inner.write(test_it=FORKS)
    result = inner.run("--propolis-hosts", str(hosts), "-s")
    result.assert_outcomes(passed=1)
    assert result.stdout.str().count("propolis: making a template") == 2
    result.stdout.no_fnmatch_line("* comes from h1")
    require_clean(rig)
