"""The environment of a program in a built-in guest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pytest_propolis.errors import ConfigError, ShellLost
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis: Run) -> AsyncIterator[TestVm]:
    async with propolis.vm_factory() as factory:
        yield await factory.start(guest="micro", cpus=1, memory_mib=256)


async def test_the_standard_devices_are_there(vm: TestVm) -> None:
    assert await vm.run("echo text > /dev/stderr; echo text > /dev/stdout") == "text\ntext"
    assert await vm.run("echo text | cat /dev/stdin; echo text | cat /dev/fd/0") == "text\ntext"
    assert await vm.run("echo kept > /dev/shm/file; cat /dev/shm/file; rm /dev/shm/file") == "kept"


async def test_a_child_finds_the_programs_that_the_shell_finds(vm: TestVm) -> None:
    assert await vm.run("timeout 5 ip link show lo") == await vm.run("ip link show lo")
    assert "/sbin" in await vm.run("env | grep ^PATH=")


async def test_the_loopback_interface_is_up(vm: TestVm) -> None:
    await vm.run("ping -c 1 -W 5 127.0.0.1")


async def test_what_wakes_an_idle_kernel_is_off(vm: TestVm) -> None:
    assert await vm.run("cat /sys/module/kfence/parameters/sample_interval") == "0"
    assert await vm.run("cat /proc/sys/vm/compaction_proactiveness /proc/sys/vm/stat_interval") == "0\n10"


async def test_a_program_s_lines_are_not_cut_at_80_columns(vm: TestVm) -> None:
    word = "1000." + "0" * 100 + "1"
    await vm.run(f"sleep 1000 {word} > /dev/null 2>&1 &")
    assert word in await vm.run("ps")


async def test_the_longest_command_line_of_a_kernel_is_taken_with_plain_words(
    vm: TestVm, vm_factory: VmFactory
) -> None:
    def arguments(length: int) -> str:
        words = "run_nightly -e -- single propolis.filled_up_with="
        return words + "x" * (length - len(vm.guest.image.command_line) - 1 - len(words))

    longest = await vm_factory.start(guest="micro", boot="cold", kernel_arguments=arguments(2047))
    command_line = await longest.run("cat /proc/cmdline")
    assert command_line.endswith(arguments(2047))
    assert len(command_line) == 2047
    with pytest.raises(ConfigError, match="command line has 2048 bytes, and Linux takes at most 2047"):
        await vm_factory.start("longer", guest="micro", kernel_arguments=arguments(2048))


@pytest.mark.slow
async def test_alpine_s_loopback_interface_is_up_and_another_host_name_is_no_trouble(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="alpine")
    await vm.run("ping -c 1 -W 5 127.0.0.1")
    await vm.run("echo web01 > /etc/hostname")
    await vm.graceful_reboot()
    assert await vm.run("hostname") == "web01"
    await vm.run("ping -c 1 -W 5 127.0.0.1")


@pytest.mark.slow
async def test_a_command_whose_shells_were_killed_ends_at_the_login_prompt(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="alpine", channel="console")
    with pytest.raises(ShellLost, match="the guest shows a login prompt where its shell was"):
        await vm.run("fuser -k -9 /dev/ttyS0; sleep 1000")
    await vm.wait_to_boot()
    assert await vm.run("echo back") == "back"
