"""What a failed test shows of its VMs, and where their logs lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from inner_run import InnerRun

FAILS = """
async def test_fails(vm_factory):
    vm = await vm_factory.start("alice", cpus=1, memory_mib=192)
    await vm_factory.create("bob")
    await vm.run("echo a line that was shown; echo complaint >&2; exit 3")

async def test_passes(vm_factory):
    vm = await vm_factory.create("carol")
    await vm.ensure()
"""


def test_the_report_shows_the_vm_its_state_its_spec_its_console_and_its_log(inner: InnerRun) -> None:
    inner.write(test_it=FAILS)
    result = inner.run("-k", "test_fails")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*CommandFailed: VM 'alice': *ended with status 3",
            "E*output (2 lines, the last 2):",
            "E*| a line that was shown",
            "E*| complaint",
            "* propolis VM 'alice' *",
            "state:   Running",
            "spec:    micro, 1 CPUs, 192 MiB, disks: none",
            "console: the last * lines",
            "    | a line that was shown",
            "log:     *",
            "* propolis VM 'bob' *",
            "state:   not created",
            "console: nothing was shown",
        ]
    )
    (alice, _) = [line.removeprefix("log:     ") for line in result.outlines if line.startswith("log:  ")]
    assert "a line that was shown\n" in Path(alice).read_text()


def test_logs_lie_in_one_directory_per_test(inner: InnerRun) -> None:
    logs = inner.pytester.path / "logs"
    inner.write(test_it=FAILS)
    result = inner.run(f"--propolis-log-dir={logs}")
    result.assert_outcomes(passed=1, failed=1)
    found = {place.name: sorted(file.name for file in place.glob("*.serial.log")) for place in logs.iterdir()}
    assert found == {"test_it.py_test_fails": ["alice.serial.log"], "test_it.py_test_passes": ["carol.serial.log"]}


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_test_that_passes_shows_nothing_of_its_vms(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(test_it=FAILS)
    result = inner.run("-k", "test_passes", *workers)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*propolis VM*")


def test_a_vm_that_stops_while_it_is_used_is_reported_in_its_last_state(inner: InnerRun) -> None:
    inner.write(test_it="async def test_it(test_vm):\n    await test_vm.run('poweroff -f')")
    result = inner.fails_with("ConsoleClosed: VM 'test-vm': the console closed: the VM has stopped")
    result.stdout.fnmatch_lines(["* propolis VM 'test-vm' *", "state:   Destroyed"])
