"""Tests whose VMs are reset or end, as a user sees them."""

from __future__ import annotations

import pytest
from inner_run import InnerRun

ENDS = r"""
import os, signal
from pathlib import Path
import pytest_asyncio

PULSE = r"(sleep 0.2; printf '\376' | dd of=/dev/port bs=1 seek=100 conv=notrunc) > /dev/null 2>&1 &"

async def reset(vm):
    reset = vm.console.next_reset()
    await vm.run(PULSE)
    await reset

def kill(vm):
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if vm.id.encode() in command and b"qemu" in command.split(b"\0")[0]:
            os.kill(int(process.name), signal.SIGKILL)

async def test_reset(test_vm):
    await reset(test_vm)

@pytest_asyncio.fixture
async def killed(test_vm):
    yield test_vm
    await test_vm.run("echo so far >/dev/ttyS0")
    kill(test_vm)
    await test_vm.console.moves()

async def test_killed_at_the_end(killed):
    pass

async def test_expected_reset(test_vm):
    async with test_vm.expect_reset():
        await test_vm.run(PULSE)
    await test_vm.wait_to_boot()

async def test_expected_exit(test_vm):
    async with test_vm.expect_exit():
        kill(test_vm)

async def test_asked(test_vm):
    await test_vm.run("reboot -f &")

async def test_passes(test_vm):
    assert await test_vm.run("echo hello") == "hello"
"""


ABORTS = r"""
import os, signal
from pathlib import Path

async def test_abort(test_vm):
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if test_vm.id.encode() in command and b"qemu" in command.split(b"\0")[0]:
            with (process / "fd" / "2").open("a") as printed:
                printed.write("Unexpected error in bdrv_check\nnode 'a' is missing\n")
            os.kill(int(process.name), signal.SIGABRT)
    await test_vm.run("sleep 100")
"""


def test_the_report_has_the_last_lines_of_a_qemu_that_aborts_and_its_log_stays(inner: InnerRun) -> None:
    logs = inner.pytester.path / "logs"
    inner.write(test_it=ABORTS)
    result = inner.run(f"--propolis-log-dir={logs}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*ConsoleClosed: VM 'test-vm': *QEMU was ended by signal SIGABRT: node 'a' is missing",
            "* propolis VM 'test-vm' *",
            "state:   Failed",
            "qemu:    the last * lines",
            "    | Unexpected error in bdrv_check",
            "    | node 'a' is missing",
            "log:     *",
        ]
    )
    (log,) = logs.rglob("test-vm.qemu.log")
    assert log.read_text().splitlines()[-2:] == ["Unexpected error in bdrv_check", "node 'a' is missing"]


def test_resets_and_ends_that_nothing_asked_for_fail_their_tests(inner: InnerRun) -> None:
    inner.write(test_it=ENDS)
    result = inner.run()
    result.assert_outcomes(passed=5, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_killed_at_the_end*",
            "VM 'test-vm': the VM stopped unexpectedly: QEMU was killed by SIGKILL*",
            "hint: expect it with `async with vm.expect_exit():`, or see --propolis-fail-on",
            "* propolis unexpected end of VM 'test-vm' *",
            "| so far",
            "VM 'test-vm': the guest reset itself unexpectedly: the guest has reset its machine",
            "hint: expect it with `async with vm.expect_reset():`, or see --propolis-fail-on",
            "* propolis unexpected reset of VM 'test-vm' *",
            "FAILED test_it.py::test_reset - *",
        ]
    )
    inner.run("--propolis-fail-on=never").assert_outcomes(passed=6)


@pytest.mark.slow
def test_a_synchronous_test_can_expect_a_reset(inner: InnerRun) -> None:
    inner.write(
        test_it=r"""
PULSE = r"(sleep 0.2; printf '\376' | dd of=/dev/port bs=1 seek=100 conv=notrunc) > /dev/null 2>&1 &"

def test_expected(test_vm_sync):
    with test_vm_sync.expect_reset() as reset:
        test_vm_sync.run(PULSE)
    assert reset.reason == "the guest has reset its machine"
    test_vm_sync.wait_to_boot()
"""
    )
    inner.run().assert_outcomes(passed=1)
