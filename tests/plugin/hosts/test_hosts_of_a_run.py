"""Runs over several hosts: where VMs are, what tests are given, and that nothing is left on any host."""

from __future__ import annotations

from pathlib import Path

import pytest
from inner_run import InnerRun
from propolis_command import propolis

EXAMPLES = Path(__file__).parents[3] / "example_tests"

TWO_HOSTS = """
from pathlib import Path

import pytest
from pytest_propolis import DataDisk, InstanceState, NotSameAs

async def test_a_vm_on_each_and_one_moves_to_the_other(test_vm, vm_factory, remote_host):
    other = await vm_factory.start("other", host=NotSameAs(test_vm))
    assert other.host is remote_host
    assert await other.run("echo there") == "there"
    await test_vm.run("X=kept")
    target = await vm_factory.successor(test_vm, host=remote_host)
    await target.migrate_from(test_vm)
    await target.wait_for_state(InstanceState.RUNNING)
    await test_vm.wait_for_state(InstanceState.DESTROYED)
    assert target.host is remote_host
    assert await target.run("echo $X") == "kept"

@pytest.mark.multi_node(2)
async def test_the_disk_moves_along(vm_factory, remote_hosts):
    here, there = remote_hosts
    vm = await vm_factory.start("source", host=here, disks=(DataDisk(name="data", size_mib=16),))
    await vm.run("echo abc | dd of=/dev/vda bs=512 conv=sync && sync")
    target = await vm_factory.successor(vm, host=there)
    await target.migrate_from(vm)
    assert await target.run("head -c 3 /dev/vda") == "abc"

async def test_commands_and_files_on_a_host(remote_host, tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    await remote_host.put(tmp_path / "a", tmp_path / "b")
    await remote_host.get(tmp_path / "b", tmp_path / "c")
    assert await remote_host.run(f"cat {tmp_path}/c") == "content"
"""

FAILING = """
async def test_it(vm_factory, remote_host):
    await vm_factory.start("far", host=remote_host)
    assert False
"""


@pytest.mark.parametrize("workers", [pytest.param((), marks=pytest.mark.slow), ("-n2",)])
def test_vms_run_on_two_hosts_and_move_between_them(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(test_it=TWO_HOSTS)
    inner.run("--propolis-hosts", "local:2", *workers).assert_outcomes(passed=3)
    assert inner.leavings() == []


def test_a_test_that_needs_another_host_is_skipped_with_the_remedy_where_there_is_one(inner: InnerRun) -> None:
    inner.write(test_it=TWO_HOSTS)
    result = inner.run("-rs")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*needs 2 hosts, and the run has 1: --propolis-hosts local:2*propolis_hosts*"])
    assert not (inner.runtime / "propolis").exists()


LABELS = """
import pytest
from pytest_propolis import ConfigError, Labels

async def test_it(vm_factory, remote_hosts):
    vm = await vm_factory.start("labelled", host=Labels("fast"), memory_mib=128)
    assert vm.host.name == "right"
    refusal = "no host that will do: a host with the labels fast, large"
    with pytest.raises(ConfigError, match=refusal) as caught:
        await vm_factory.start("none", host=Labels("fast", "large"))
    assert caught.value.hint.startswith("it has left, right")
"""


def test_a_vm_starts_on_a_host_with_the_labels_that_are_wanted(inner: InnerRun) -> None:
    inventory = inner.pytester.path / "hosts.toml"
    inventory.write_text('[hosts.left]\nkind = "local"\n[hosts.right]\nkind = "local"\nlabels = ["fast"]\n')
    inner.write(test_it=LABELS)
    inner.run("--propolis-hosts", str(inventory)).assert_outcomes(passed=1)


def test_the_report_of_a_failed_test_names_the_host_of_each_vm(inner: InnerRun) -> None:
    inner.write(test_it=FAILING)
    result = inner.run("--propolis-hosts", "local:2")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*propolis VM 'far'*", "host: *local-2 (127.0.0.2)"])


def test_vms_that_are_kept_on_two_hosts_are_listed_and_removed(inner: InnerRun) -> None:
    inner.write(test_it=FAILING.replace("    assert", "    await vm_factory.start('near')\n    assert"))
    result = inner.run("--propolis-hosts", "local:2", "--propolis-keep", "failed")
    try:
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*VMs kept*", "*propolis console*"])
        assert len([line for line in result.outlines if "propolis console" in line and "# VM" in line]) == 2
    finally:
        propolis("gc", "--kept")
    assert inner.leavings() == []


def test_the_examples_of_several_hosts_pass(inner: InnerRun) -> None:
    inner.write(conftest=(EXAMPLES / "conftest.py").read_text(), test_hosts=(EXAMPLES / "test_hosts.py").read_text())
    inner.run("--propolis-hosts", "local:3", "-n2").assert_outcomes(passed=3)
    assert inner.leavings() == []
