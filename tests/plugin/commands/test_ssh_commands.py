"""The commands `propolis ps`, `console`, `doctor` and `gc`, on hosts that only SSH reaches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis
from ssh_rig import SshRig, inventory_of, require_rigs, ssh_rig

FAILS = """
async def test_it(test_vm):
    await test_vm.run("echo a line of before >/dev/console")
    assert False

async def test_ended(test_vm):
    await test_vm.host.run(f"kill $(pgrep -f '[q]emu.*{test_vm.id}')")
    await test_vm.wait_for_state("Destroyed")
"""


@pytest.fixture
def rig() -> Iterator[SshRig]:
    require_rigs()
    with ssh_rig("h1", "h2") as made:
        yield made


@pytest.mark.slow
def test_a_vm_that_is_kept_on_a_host_is_listed_watched_and_removed(inner: InnerRun, hosts: Path) -> None:
    inner.write(test_it=FAILS)
    result = inner.run("--propolis-hosts", str(hosts), "--propolis-keep=failed", "-p", "no:randomly")
    result.assert_outcomes(failed=2)
    stays, _ = [line.split()[3:] for line in result.outlines if line.startswith("stays:   propolis console ")]
    assert stays[1:] == ["--hosts", str(hosts), "--host", "h1"]
    vm = stays[0]

    listed = propolis("ps", "--hosts", str(hosts))
    there, other = listed.split("h2:\n")
    assert f"{vm} 'test-vm', Running" in there
    assert other == "nothing is there\n"
    assert vm in propolis("ps", "--kept", "--hosts", str(hosts), "--host", "h1")

    shown = propolis("console", *stays, typed="echo $((6 * 7))\r")
    assert "a line of before" in shown
    assert "\n42\n" in shown.replace("\r", "")
    assert f"there is no VM {vm!r}" in propolis("console", vm, status=1)
    assert propolis("exec", *stays[1:], vm, "--", "echo there; exit 3", status=3) == "there\n"

    log = next(inner.pytester.path.rglob("*test_ended*/test-vm.qemu.log"), None)
    assert log, sorted(map(str, inner.pytester.path.rglob("*.log")))
    assert "terminating on signal 15" in log.read_text()

    assert f"would remove VM {vm}" in propolis("gc", "--dry-run", "--kept", "--hosts", str(hosts))
    assert f"removed VM {vm}" in propolis("gc", "--kept", "--hosts", str(hosts))
    assert propolis("ps", "--hosts", str(hosts)) == "h1:\nnothing is there\nh2:\nnothing is there\n"
    assert "VMs can run here" in propolis("doctor", "--hosts", str(hosts), "--host", "h2")


@pytest.mark.slow
def test_the_console_of_a_vm_at_a_server_program_is_reached(inner: InnerRun, hosts: Path) -> None:
    inner.write(
        test_it="""
        async def test_it(test_vm):
            await test_vm.run("echo a line of before")
            assert False
        """
    )
    result = inner.run(
        *("--propolis-hosts", str(hosts), "--propolis-keep=failed", "--propolis-server", "propolis-server-qemu")
    )
    result.assert_outcomes(failed=1)
    (stays,) = [line.split()[3:] for line in result.outlines if line.startswith("stays:   propolis console ")]
    shown = propolis("console", *stays, typed="echo $((6 * 7))\r")
    assert "a line of before" in shown
    assert "\n42\n" in shown.replace("\r", "")
    propolis("gc", "--kept", "--hosts", str(hosts))
    assert propolis("ps", "--hosts", str(hosts)) == "h1:\nnothing is there\nh2:\nnothing is there\n"


def test_a_host_that_cannot_be_reached_is_named_and_the_others_answer(inner: InnerRun, rig: SshRig) -> None:
    hosts = inner.pytester.path / "hosts.toml"
    closed = '[hosts.closed]\nkind = "ssh"\naddress = "root@127.0.0.1"\n[hosts.closed.options]\nconfig = "/dev/null"\n'
    hosts.write_text(inventory_of(rig) + closed)
    shown = propolis("ps", "--hosts", str(hosts), status=1)
    assert "host closed: no SSH connection to root@127.0.0.1" in shown
    assert "h1:\nnothing is there\n" in shown
    assert "no host 'h9'" in propolis("ps", "--hosts", str(hosts), "--host", "h9", status=1)


def test_doctor_describes_every_host_in_one_json_object(inner: InnerRun, rig: SshRig) -> None:
    hosts = inner.pytester.path / "hosts.toml"
    closed = '[hosts.closed]\nkind = "ssh"\naddress = "root@127.0.0.1"\n[hosts.closed.options]\nconfig = "/dev/null"\n'
    hosts.write_text(inventory_of(rig) + closed + '[hosts.here]\nkind = "local"\n')
    found = json.loads(propolis("doctor", "--json", "--hosts", str(hosts), "--host", "h1", "--host", "here"))["hosts"]
    assert {name: host["can_run_vms"] for name, host in found.items()} == {"h1": True, "here": True}
    assert "QEMU" in {capability["name"] for capability in found["h1"]["capabilities"]}
    shown = propolis("doctor", "--json", "--hosts", str(hosts), "--host", "closed", status=1)
    assert "host closed: no SSH connection to root@127.0.0.1" in json.loads(shown)["hosts"]["closed"]["error"]


def test_a_host_is_asked_for_without_an_inventory(inner: InnerRun) -> None:
    assert "--host needs an inventory" in propolis("ps", "--host", "h1", status=1)
