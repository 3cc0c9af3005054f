"""Resets and ends of a VM: those that the test requested, has seen an error of, or expects."""

from __future__ import annotations

import asyncio
import os
import re
import signal

import pytest
from qemu_pids import pids_of_qemu

from pytest_propolis.console.kernel.ends import asks_for_an_end
from pytest_propolis.errors import CommandFailed, ConsoleClosed, ConsoleTimeout, GuestWasReset, ShellLost
from pytest_propolis.propolis_api import InstanceState, InstanceStateRequested
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

PULSE = r"printf '\376' | dd of=/dev/port bs=1 seek=100 conv=notrunc 2>/dev/null"
"""Has the keyboard controller reset the machine: no program's name says so."""

LONG_S = 120.0
PROMPT = re.compile("~ # $")


@pytest.fixture
async def vm(vm_factory: VmFactory) -> TestVm:
    return await vm_factory.start(guest="micro", cpus=1, memory_mib=256)


def taken(vm: TestVm) -> list[str]:
    return [end.kind for end in vm.kernel_failures.ends.take()]


async def reset_unseen(vm: TestVm) -> None:
    """Have the guest reset itself while no command runs, and wait until it boots again."""
    reset = vm.console.next_reset()
    await vm.run(f"(sleep 0.2; {PULSE}) > /dev/null 2>&1 &")
    await reset
    vm.console.transcript.skip()
    await vm.wait_for_serial_output(PROMPT, timeout_s=LONG_S)


async def kill_unseen(vm: TestVm) -> None:
    """Kill QEMU while nothing waits for the guest, and wait until the console knows."""
    (pid,) = pids_of_qemu(vm)
    os.kill(pid, signal.SIGKILL)
    assert not await vm.console.moves()


async def test_a_reset_that_nothing_asked_for_is_found_with_what_the_console_showed(vm: TestVm) -> None:
    await vm.run("echo the last words >/dev/ttyS0")
    await reset_unseen(vm)
    (end,) = vm.kernel_failures.ends.take()
    assert end.lines()[0] == "the guest has reset its machine"
    assert "| the last words" in end.lines()


async def test_a_reset_that_nothing_asked_for_ends_waits_for_the_console(vm: TestVm) -> None:
    await vm.run(f"(sleep 0.2; {PULSE}) > /dev/null 2>&1 &")
    with pytest.raises(GuestWasReset, match="which the test has not requested") as raised:
        await vm.wait_for_serial_output("what never comes", timeout_s=LONG_S)
    assert "expect_reset" in str(raised.value.hint)
    assert taken(vm) == [], "the error has reported it"
    await vm.wait_to_boot()
    assert await vm.run("echo alive") == "alive"


async def test_waits_for_the_console_outlast_a_reset_that_the_test_asks_for(vm: TestVm) -> None:
    for typed in ("(sleep 0.2; reboot -f) > /dev/null 2>&1 &", "(sleep 0.2; echo b > /proc/sysrq-trigger) &"):
        await vm.run(typed)
        vm.console.transcript.skip()
        await vm.wait_for_serial_output(PROMPT, timeout_s=LONG_S)
        await vm.send_serial("\n")  # for another prompt
        await vm.wait_to_boot()
    async with vm.expect_reset():
        await vm.run(f"(sleep 0.2; {PULSE}) > /dev/null 2>&1 &")
        vm.console.transcript.skip()
        await vm.wait_for_serial_output(PROMPT, timeout_s=LONG_S)


async def test_resets_while_the_guest_boots_again_are_no_further_ones(vm: TestVm) -> None:
    await reset_unseen(vm)
    vm.console.transcript.skip()
    await vm.send_serial(f"{PULSE}\n")
    await vm.wait_for_serial_output(PROMPT, timeout_s=LONG_S)
    assert taken(vm) == ["reset"]


@pytest.mark.requires(server="engine")
async def test_a_killed_qemu_is_found(vm: TestVm) -> None:
    await kill_unseen(vm)
    (end,) = vm.kernel_failures.ends.take()
    assert (end.kind, end.line) == ("exit", "QEMU was killed by SIGKILL; is the host or its container out of memory?")


async def test_an_error_of_a_command_tells_of_a_reset(vm: TestVm) -> None:
    with pytest.raises(ShellLost, match="has reset itself"):
        await vm.run(f"{PULSE}; sleep 100", timeout_s=LONG_S)
    assert taken(vm) == []
    await vm.wait_to_boot()
    assert await vm.run("echo alive") == "alive"


async def test_an_error_of_a_later_command_tells_of_a_reset(vm: TestVm) -> None:
    await reset_unseen(vm)
    with pytest.raises(ShellLost, match="has reset itself"):
        await vm.run("true")
    assert taken(vm) == []


@pytest.mark.requires(server="engine")
async def test_an_error_or_a_state_tells_of_an_end(vm_factory: VmFactory) -> None:
    for number in range(3):
        vm = await vm_factory.start(f"vm{number}", guest="micro", cpus=1, memory_mib=256)
        await kill_unseen(vm)
        if number == 0:
            with pytest.raises(ConsoleClosed):
                await vm.wait_for_serial_output("anything")
        elif number == 1:
            await vm.wait_for_state(InstanceState.FAILED)
        else:
            while await vm.get_state() is not InstanceState.FAILED:
                pass
        assert taken(vm) == []


@pytest.mark.requires(server="engine")
async def test_a_vm_that_has_failed_before_it_is_closed_is_found_once(vm: TestVm) -> None:
    await kill_unseen(vm)
    await vm.aclose()
    assert taken(vm) == ["exit"]


@pytest.mark.slow
async def test_what_the_test_asks_for_is_not_found(vm: TestVm) -> None:
    await vm.run("(sleep 0.2; reboot -f) > /dev/null 2>&1 &")
    await vm.wait_to_boot()
    await vm.graceful_reboot()
    await vm.reset()
    await vm.wait_to_boot()
    await vm.client.instance_state_put(InstanceStateRequested.STOP)
    assert not await vm.console.moves()
    assert taken(vm) == []


@pytest.mark.slow
async def test_a_guest_that_booted_from_cold_is_waited_for_before_it_has_reset_itself(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, boot="cold")
    await vm.run("(sleep 2; reboot -f) > /dev/null 2>&1 &")
    await vm.wait_to_boot(timeout_s=LONG_S)
    assert await vm.run("cut -d. -f1 /proc/uptime") != ""


@pytest.mark.slow
async def test_a_guest_that_resets_itself_while_it_is_logged_in_to_is_waited_for(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", cpus=1, memory_mib=256)
    await vm.launch()
    await vm.wait_for_serial_output(PROMPT, timeout_s=LONG_S)
    # The empty line shows a further prompt, at which the log-in begins.
    await vm.send_serial("\n/bin/busybox sleep 2; /bin/busybox reboot -f\n")
    await vm.wait_to_boot(timeout_s=LONG_S)
    assert await vm.run("echo alive") == "alive"


async def test_a_command_that_switches_the_machine_off_has_asked_for_its_end(vm: TestVm) -> None:
    await vm.run("(sleep 0.2; poweroff -f) > /dev/null 2>&1 &")
    assert not await vm.console.moves()
    assert taken(vm) == []


@pytest.mark.slow
async def test_an_end_is_unexpected_again_when_the_guest_has_booted_after_one_that_was_asked_for(vm: TestVm) -> None:
    await vm.graceful_reboot()
    await reset_unseen(vm)
    assert taken(vm) == ["reset"]


@pytest.mark.slow
async def test_the_reset_after_a_panic_is_the_panic_s(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, boot="cold", kernel_arguments="panic=1")
    async with vm.expect_panic():
        await vm.run("echo c > /proc/sysrq-trigger")
    vm.console.transcript.skip_to(vm.console.boot_start)
    await vm.wait_for_serial_output(PROMPT, timeout_s=LONG_S)
    assert taken(vm) == []


async def test_an_expected_reset_ends_its_block(vm: TestVm) -> None:
    async with vm.expect_reset() as reset:
        await vm.run(f"{PULSE}; sleep 100", timeout_s=LONG_S)
    assert reset.reason == "the guest has reset its machine"
    await vm.wait_to_boot()
    async with vm.expect_reset():
        await vm.run(f"(sleep 0.2; {PULSE}) > /dev/null 2>&1 &")
    await vm.wait_to_boot()
    assert await vm.run("echo alive") == "alive"
    assert taken(vm) == []


@pytest.mark.requires(server="engine")
async def test_an_expected_end_ends_its_block(vm: TestVm) -> None:
    async with vm.expect_exit() as end:
        (pid,) = pids_of_qemu(vm)
        os.kill(pid, signal.SIGKILL)
        await vm.run("sleep 100", timeout_s=LONG_S)
    assert end.reason is not None
    assert "SIGKILL" in end.reason
    await vm.aclose()
    assert taken(vm) == []


async def test_an_end_that_does_not_come_is_an_error(vm: TestVm) -> None:
    with pytest.raises(ConsoleTimeout, match="was expected to reset itself"):
        async with vm.expect_reset(timeout_s=0.1):
            await vm.run("true")
    with pytest.raises(ConsoleTimeout, match="was expected to stop"):
        async with vm.expect_exit(timeout_s=0.1):
            await vm.run("true")
    with pytest.raises(CommandFailed):
        async with vm.expect_reset():
            await vm.run("false")


async def test_another_end_than_the_expected_one_is_an_error(vm: TestVm) -> None:
    with pytest.raises(ConsoleClosed):
        async with vm.expect_reset():
            await vm.run("(sleep 0.2; poweroff -f) > /dev/null 2>&1 &")


@pytest.mark.slow
async def test_a_reset_of_another_vm_is_not_expected(vm_factory: VmFactory, vm: TestVm) -> None:
    other = await vm_factory.start("other", guest="micro", cpus=1, memory_mib=256)
    async with vm.expect_reset():
        await asyncio.gather(reset_unseen(other), vm.run(f"(sleep 0.2; {PULSE}) > /dev/null 2>&1 &"))
    assert (taken(vm), taken(other)) == ([], ["reset"])


@pytest.mark.parametrize(
    ("typed", "asks"),
    [
        ("r00 0 reboot", True),
        ("r00 0 /sbin/reboot -f", True),
        ("r00 0 (sleep 1; poweroff -f) &", True),
        ("r00 1 true\nnreboot\n", True),
        ("r00 0 systemctl poweroff", True),
        ("r00 0 init 6", True),
        ("r00 0 echo b > /proc/sysrq-trigger", True),
        ("poweroff\n", True),
        ("r00 0 cat reboot.log", False),
        ("r00 0 ./test_reboot", False),
        ("r00 0 asphalt", False),
        ("r00 0 init 3", False),
    ],
)
def test_a_command_that_names_such_a_program_asks_for_an_end(typed: str, asks: bool) -> None:
    assert asks_for_an_end(typed.encode()) == asks
