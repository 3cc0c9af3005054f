"""Markers: what a test declares, checked when it is collected, and met or skipped before anything starts."""

from __future__ import annotations

import re

import pytest
from inner_run import InnerRun

PER_GUEST = """
import pytest

@pytest.mark.guest_os("micro", "alpine")
async def test_each(vm_factory, propolis_guest):
    vm = await vm_factory.create("vm")
    assert vm.guest.name == propolis_guest

@pytest.mark.guest_os
async def test_any(vm_factory):
    assert (await vm_factory.create("vm")).guest.name == "micro"

@pytest.mark.guest_os("alpine")
async def test_one(vm_factory):
    assert (await vm_factory.create("vm")).guest.name == "alpine"
    assert (await vm_factory.create("other", guest="micro")).guest.name == "micro"
"""


def test_a_test_runs_once_per_guest_that_its_marker_names(inner: InnerRun) -> None:
    inner.write(test_it=PER_GUEST)
    result = inner.run("-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "*::test_each[[]micro] PASSED*",
            "*::test_each[[]alpine] PASSED*",
            "*::test_any PASSED*",
            "*::test_one[[]alpine]*",
        ]
    )


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("guest_os('alpin')", "there is no guest named 'alpin'*did you mean 'alpine'"),
        ("guest_os('micro', 'micro')", "a guest is named twice"),
        ("guest_os(name='micro')", "guest_os has no argument 'name'*did you mean 'names'"),
        ("multi_node()", "multi_node: missing a required argument: 'n'"),
        ("multi_node(0)", "0 is not a number of hosts from 1 to 64"),
        ("multi_node('two')", "'two' is not a number of hosts"),
        ("multi_node(2, label=())", "multi_node has no argument 'label'*did you mean 'labels'"),
        ("multi_node(2, labels='fast')", "labels must be a list of words, and is 'fast'"),
        ("requires(memory=3)", "requires has no argument 'memory'*did you mean 'memory_mib'"),
        ("requires(zfs=1)", "zfs must be True or False, and is 1"),
        ("requires(server='propolys')", "server must be 'engine' or 'propolis'*did you mean 'propolis'"),
        ("cold_boot(1)", "cold_boot: too many positional arguments"),
    ],
)
def test_a_wrong_marker_is_a_collection_error_with_the_closest_word(inner: InnerRun, marker: str, said: str) -> None:
    inner.write(test_it=f"import pytest\n@pytest.mark.{marker}\nasync def test_it(test_vm):\n    pass\n")
    result = inner.run("--collect-only")
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert re.search(".*".join(map(re.escape, said.split("*"))), result.stdout.str(), re.DOTALL)


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("requires(memory_mib=1 << 29)", "it needs a host with memory_mib=536870912, and the largest of the run has *"),
        ("requires(cpus=4000)", "it needs a host with cpus=4000, and the largest of the run has *"),
        ("requires(labels=['fast'])", "it needs 1 host with the labels fast, and the run has 0: name hosts*"),
        ("requires(server='propolis')", "it needs a propolis-server*"),
        ("multi_node(3)", "it needs 3 hosts, and the run has 1: --propolis-hosts local:3*"),
    ],
)
def test_a_test_that_no_host_can_run_is_skipped_before_anything_starts(inner: InnerRun, marker: str, said: str) -> None:
    inner.write(test_it=f"import pytest\n@pytest.mark.{marker}\nasync def test_it(test_vm):\n    pass\n")
    result = inner.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*{said}"])
    assert not (inner.runtime / "propolis").exists()


def test_a_requirement_that_is_met_changes_nothing(inner: InnerRun) -> None:
    inner.write(
        test_it="import pytest\n"
        "@pytest.mark.requires(memory_mib=64, cpus=1, server='engine')\n"
        "async def test_it(vm_factory):\n    await vm_factory.create()\n"
    )
    inner.run().assert_outcomes(passed=1)


def test_a_guest_that_is_not_built_is_a_skip_that_names_the_command(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPOLIS_ARTIFACT_DIR", str(inner.pytester.mkdir("empty")))
    inner.write(
        test_it="import pytest\n@pytest.mark.guest_os('debian')\nasync def test_it(vm_factory):\n    assert False\n"
    )
    result = inner.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*the guest debian is not built: `propolis setup debian` builds it*"])


def test_the_markers_are_listed(inner: InnerRun) -> None:
    result = inner.run("--markers")
    for name in ("cold_boot()", "guest_os(*names", "multi_node(n", "requires(*"):
        assert f"@pytest.mark.{name}" in result.stdout.str()
