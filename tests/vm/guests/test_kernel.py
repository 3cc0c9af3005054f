"""The output of a guest's kernel: its messages, and the panics that a test expects."""

from __future__ import annotations

import pytest

from pytest_propolis.console.kernel.failures import KernelFailures
from pytest_propolis.console.transcript import Transcript
from pytest_propolis.errors import ConsoleTimeout, GuestPanicked
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

CRASH = "echo c > /proc/sysrq-trigger"
PANIC = "Kernel panic - not syncing: sysrq triggered crash"


@pytest.fixture
async def vm(vm_factory: VmFactory) -> TestVm:
    return await vm_factory.start(guest="micro", cpus=1, memory_mib=256)


@pytest.mark.slow
async def test_an_expected_panic_ends_its_block_and_the_vm_can_be_reset(vm: TestVm) -> None:
    async with vm.expect_panic() as panic:
        await vm.run(CRASH)
    assert panic.line == PANIC
    with pytest.raises(GuestPanicked):
        await vm.run("true")
    assert any(PANIC in message for message in await vm.kernel_messages())
    await vm.reset()
    await vm.wait_to_boot()
    assert not any(PANIC in message for message in await vm.kernel_messages())


async def test_a_panic_may_come_after_the_block_s_last_command(vm: TestVm) -> None:
    async with vm.expect_panic() as panic:
        await vm.run(f"(sleep 1; {CRASH}) > /dev/null 2>&1 &")
    assert panic.line == PANIC
    assert vm.kernel_failures.take() == []


async def test_a_panic_that_does_not_come_is_an_error(vm: TestVm) -> None:
    with pytest.raises(ConsoleTimeout, match="expected to panic"):
        async with vm.expect_panic(timeout_s=0.1):
            await vm.run("true")


async def test_what_a_command_prints_of_an_oops_is_its_output(vm: TestVm) -> None:
    line = "[   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000000"
    assert await vm.run(f"echo '{line}'; echo '[   12.345679] {PANIC}'; sleep 0.1") == f"{line}\n[   12.345679] {PANIC}"
    assert vm.kernel_failures.take() == []
    # The kernel itself writes what is written to /dev/kmsg.
    await vm.run("echo '<1>BUG: not a real one' > /dev/kmsg; sleep 0.1")
    await vm.wait_for_serial_output("not a real one")
    assert [(failure.kind, failure.line) for failure in vm.kernel_failures.take()] == [("oops", "BUG: not a real one")]


async def test_the_kernel_s_messages_are_those_of_dmesg(vm: TestVm) -> None:
    messages = await vm.kernel_messages()
    assert any("Linux version" in message for message in messages)


def test_an_oops_and_the_panic_that_follows_are_two_failures_with_their_own_lines() -> None:
    oops = (
        "[    3.000001] BUG: kernel NULL pointer dereference, address: 00\n"
        "[    3.000002] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI\n"
        "[    3.000003] ---[ end trace 0000000000000000 ]---\n"
    )
    panic = (
        "[    3.000004] Kernel panic - not syncing: Fatal exception\n"
        "[    3.000005] ---[ end Kernel panic - not syncing: Fatal exception ]---\n"
    )
    transcript, failures = Transcript(), KernelFailures("vm")
    for character in f"hello\n{oops}{panic}":
        transcript.append(character)
        failures.feed(character.replace("\n", "\r\n").encode(), transcript)
    assert ["".join(f"{line}\n" for line in failure.lines()) for failure in failures.take()] == [oops, panic]
