"""Tests whose guests' kernels fail, as a user sees them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from inner_run import InnerRun
from reruns import RERUNS_ONCE

PAGE = Path(__file__).parents[3] / "docs" / "kernel.md"

CRASHES = """
import asyncio
import pytest
import pytest_asyncio

KERNEL_SAYS = "echo '<1>BUG: written by hand' > /dev/kmsg"

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis):
    async with propolis.vm_factory() as factory:
        yield await factory.start()

@pytest.mark.asyncio(loop_scope="module")
async def test_bug(vm):
    await vm.run(KERNEL_SAYS)
    await vm.wait_for_serial_output("written by hand")

@pytest.mark.asyncio(loop_scope="module")
async def test_after_the_bug(vm):
    await vm.run("true")

@pytest.mark.asyncio(loop_scope="module")
async def test_panic(vm):
    asyncio.ensure_future(vm.run("echo c > /proc/sysrq-trigger")).add_done_callback(lambda crash: crash.exception())
    await vm.wait_for_serial_output("sysrq triggered crash ]---\\n")

@pytest.mark.asyncio(loop_scope="module")
async def test_after_the_panic(vm):
    await vm.reset()
    await vm.wait_to_boot()
"""

LATE = """
import pytest_asyncio

@pytest_asyncio.fixture
async def crashing(test_vm):
    yield test_vm
    async with test_vm.interactive() as console:
        await console.send("echo c > /proc/sysrq-trigger\\n")
        await console.wait_for("end Kernel panic", timeout_s=60)

async def test_late(crashing):
    pass
"""


def test_an_unexpected_panic_fails_the_test_and_its_lines_are_a_section(inner: InnerRun) -> None:
    inner.write(test_it=CRASHES)
    result = inner.run()
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "VM 'vm': the guest's kernel panicked unexpectedly: Kernel panic - not syncing: sysrq triggered crash",
            "hint: expect it with *",
            "* propolis kernel panic in VM 'vm' *",
            "*Kernel panic - not syncing: sysrq triggered crash",
            "*---[[] end Kernel panic - not syncing: sysrq triggered crash []]---",
            "FAILED test_it.py::test_panic - *",
        ]
    )


@pytest.mark.slow
def test_an_oops_and_a_panic_can_both_fail_tests_or_neither(inner: InnerRun) -> None:
    inner.write(test_it=CRASHES)
    result = inner.run("--propolis-fail-on=oops")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["VM 'vm': the guest's kernel failed unexpectedly: BUG: written by hand"])
    inner.run("--propolis-fail-on=never").assert_outcomes(passed=4)


def test_a_panic_in_the_teardown_is_an_error_there(inner: InnerRun) -> None:
    inner.write(test_it=LATE)
    result = inner.run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_late*", "*propolis kernel panic in VM 'test-vm'*"])


def test_a_panic_in_the_teardown_of_a_second_attempt_counts(inner: InnerRun) -> None:
    again = LATE.replace("    pass", "    TRIES.append(1)\n    assert len(TRIES) == 2") + "\nTRIES = []\n"
    inner.write(conftest=RERUNS_ONCE, test_it=again)
    result = inner.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_late*", "*propolis kernel panic in VM 'test-vm'*"])


@pytest.mark.slow
def test_the_examples_of_the_page_on_kernels_pass(inner: InnerRun) -> None:
    panic, reset = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    inner.write(test_page=f"{panic}\n{reset}")
    inner.run().assert_outcomes(passed=2)


@pytest.mark.slow
def test_a_synchronous_test_can_expect_a_panic_and_fails_of_another(inner: InnerRun) -> None:
    inner.write(
        test_it="""
import pytest

CRASH = "echo c > /proc/sysrq-trigger"

def test_expected(test_vm_sync):
    with test_vm_sync.expect_panic() as panic:
        test_vm_sync.run(CRASH)
    assert panic.line == "Kernel panic - not syncing: sysrq triggered crash"

def test_unexpected(test_vm_sync):
    with pytest.raises(Exception, match="the guest panicked"):
        test_vm_sync.run(CRASH)

@pytest.mark.xfail
def test_xfail(test_vm_sync):
    with pytest.raises(Exception, match="the guest panicked"):
        test_vm_sync.run(CRASH)
"""
    )
    inner.run().assert_outcomes(passed=1, failed=1, xfailed=1)
    inner.run("-n1", "-k", "not xfail").assert_outcomes(passed=1, failed=1)
