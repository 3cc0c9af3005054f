"""Waits whose outcome is known before their limit: panics, resets, killed shells and a killed QEMU end them by name."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from http import HTTPStatus
from pathlib import Path

import pytest
from qemu_pids import pids_of_qemu

from pytest_propolis.console.channels import guest_ports
from pytest_propolis.errors import CommandFailed, ConsoleClosed, GuestPanicked, ShellLost
from pytest_propolis.propolis_api.connection.byte_stream import ByteStream, StreamRefused
from pytest_propolis.propolis_api.connection.endpoint import Endpoint
from pytest_propolis.settings import BootKind, ChannelKind
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

LONG_S = 120.0
"""Longer than any of these waits takes."""

ASSERTION = "../../block/io.c:123: bdrv_check: Assertion `bs->refcnt' failed."


@pytest.fixture
async def vm(vm_factory: VmFactory) -> TestVm:
    return await vm_factory.start(guest="micro", cpus=1, memory_mib=256)


async def test_a_panic_ends_a_command(vm: TestVm) -> None:
    async with vm.expect_panic():
        with pytest.raises(GuestPanicked, match="sysrq triggered crash"):
            await vm.run("echo c > /proc/sysrq-trigger", timeout_s=LONG_S)


async def test_a_panic_ends_a_wait_for_output_and_a_reset_makes_the_vm_usable_again(vm: TestVm) -> None:
    await vm.run("(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    async with vm.expect_panic():
        with pytest.raises(GuestPanicked, match="panic"):
            await vm.wait_for_serial_output("the service is up", timeout_s=LONG_S)
    await vm.reset()
    await vm.wait_to_boot()
    assert await vm.run("echo alive") == "alive"


async def test_an_old_log_of_a_panic_is_output(vm: TestVm) -> None:
    line = "---[ end Kernel panic - not syncing: long ago ]---"
    assert await vm.run(f"echo '{line}'; sleep 3; echo later") == f"{line}\nlater"


@pytest.mark.slow
async def test_a_guest_that_booted_is_logged_in_to_again_after_its_own_reset(vm_factory: VmFactory) -> None:
    """A prompt that was shown before the reset is not taken for the new one."""
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, boot="cold", boot_timeout_s=60)
    with pytest.raises(ShellLost, match="has reset itself"):
        await vm.run("reboot -f; sleep 100", timeout_s=LONG_S)
    await vm.wait_to_boot()
    assert await vm.run("echo alive") == "alive"


async def test_a_reset_ends_a_command(vm: TestVm) -> None:
    with pytest.raises(ShellLost, match="has reset itself"):
        await vm.run("reboot -f; sleep 100", timeout_s=LONG_S)
    with pytest.raises(ShellLost, match="has reset itself") as caught:
        await vm.run("echo too soon")
    assert "wait_to_boot" in str(caught.value)
    await vm.wait_to_boot()
    assert await vm.run("echo alive") == "alive"


async def test_a_reset_by_the_test_ends_the_command_of_another_task(vm: TestVm) -> None:
    command = asyncio.create_task(vm.run("echo begun >/dev/ttyS0; sleep 100", timeout_s=LONG_S))
    await vm.wait_for_serial_output("begun")
    await vm.reset()
    with pytest.raises(ShellLost, match="was reset"):
        await command


async def test_the_end_of_the_vm_ends_a_command_that_is_being_typed(vm: TestVm) -> None:
    await vm.run("(sleep 1; poweroff -f) > /dev/null 2>&1 &")
    with pytest.raises(ConsoleClosed, match="the VM has stopped"):
        await vm.run(": " + "x" * (64 << 20), timeout_s=LONG_S)  # more than any guest reads in a second


@pytest.mark.requires(server="engine")
async def test_a_port_that_the_guest_closes_as_it_ends_is_no_reason_of_its_own(
    vm_factory: VmFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, channel="port")

    async def ended(_endpoint: Endpoint, _path: str) -> ByteStream:
        raise StreamRefused(HTTPStatus.FAILED_DEPENDENCY)  # as the server answers, before its console is closed

    # Not every shell is called sh.
    await vm.run("busybox sh -c 'sleep 2; poweroff -f' >/dev/null 2>&1 & until pidof busybox; do :; done")
    monkeypatch.setattr(guest_ports, "open_byte_stream", ended)
    with pytest.raises(ConsoleClosed, match="the VM has stopped"):
        await vm.run("killall -9 sh", timeout_s=LONG_S)


@pytest.mark.parametrize("channel", ["auto", "console"])
@pytest.mark.parametrize("command", ["killall -9 sh; sleep 1", "kill -9 $PPID; sleep 3"])
async def test_the_end_of_the_guest_s_shells_is_noticed(
    vm_factory: VmFactory, command: str, channel: ChannelKind
) -> None:
    vm = await vm_factory.start(guest="micro", cpus=1, memory_mib=256, channel=channel)
    try:
        result = await vm.run_result(command, timeout_s=LONG_S)
    except ShellLost:
        pass
    else:
        assert result.status
    assert await vm.run("echo alive") == "alive"


@pytest.mark.requires(server="engine")
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "QEMU was killed by SIGKILL"),
        (signal.SIGSEGV, "QEMU was ended by signal SIGSEGV"),
        (signal.SIGABRT, "QEMU was ended by signal SIGABRT"),
        (signal.SIGRTMIN + 1, f"QEMU was ended by signal {signal.SIGRTMIN + 1}"),
        (signal.SIGTERM, "QEMU ended by itself with status 0"),
    ],
)
async def test_a_killed_qemu_is_named(vm: TestVm, number: int, reason: str) -> None:
    command = asyncio.create_task(vm.run("echo begun >/dev/ttyS0; sleep 100", timeout_s=LONG_S))
    await vm.wait_for_serial_output("begun")
    (pid,) = pids_of_qemu(vm)
    os.kill(pid, number)
    with pytest.raises(ConsoleClosed, match=reason):
        await command


@pytest.mark.requires(server="engine")
@pytest.mark.parametrize("boot", ["warm", pytest.param("cold", marks=pytest.mark.slow)])
async def test_the_last_line_of_an_aborted_qemu_is_in_the_error_and_in_its_log(
    vm_factory: VmFactory, boot: BootKind
) -> None:
    vm = await vm_factory.start("aborts", guest="micro", cpus=1, memory_mib=256, boot=boot)
    command = asyncio.create_task(vm.run("echo begun >/dev/ttyS0; sleep 100", timeout_s=LONG_S))
    await vm.wait_for_serial_output("begun")
    (pid,) = pids_of_qemu(vm)
    program = Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])).name
    with Path(f"/proc/{pid}/fd/2").open("a") as printed:
        printed.write(f"{program}: {ASSERTION}\n")
    os.kill(pid, signal.SIGABRT)
    with pytest.raises(ConsoleClosed, match=re.escape(f"QEMU was ended by signal SIGABRT: {ASSERTION}")):
        await command
    assert ASSERTION in vm.log_path.with_name("aborts.qemu.log").read_text()


async def test_a_reboot_command_that_fails_is_not_waited_for(vm: TestVm) -> None:
    vm.guest.reboot_command = "no-such-command"  # type: ignore[misc]
    try:
        with pytest.raises(CommandFailed, match="does not reboot"):
            await vm.graceful_reboot()
    finally:
        del vm.guest.reboot_command
    assert await vm.run("echo alive") == "alive"
