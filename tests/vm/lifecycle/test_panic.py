"""A guest that panics, and reports it through the pvpanic device."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from pytest_propolis.errors import BootError
from pytest_propolis.propolis_api import InstanceState, QemuPvpanic, QemuPvpanicComponent
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm


async def with_pvpanic(vm_factory: VmFactory, guest: str) -> TestVm:
    vm = await vm_factory.create(guest=guest, cpus=1, memory_mib=256)
    pvpanic = QemuPvpanicComponent(QemuPvpanic(enable_isa=True))
    vm.spec = replace(vm.spec, components=vm.spec.components | {"pvpanic": pvpanic})
    await vm.boot()
    return vm


async def wait_for_panics(vm: TestVm, count: int) -> None:
    """Poll the agent, which counts panics without notifications."""
    async with asyncio.timeout(30):
        while (await vm.extended_info()).panics < count:
            pass


@pytest.mark.requires(server="engine")
@pytest.mark.slow
async def test_a_panic_of_a_linux_kernel_is_counted_and_the_vm_stays_as_it_is(vm_factory: VmFactory) -> None:
    vm = await with_pvpanic(vm_factory, "alpine")
    await vm.run("modprobe pvpanic-mmio")
    assert (await vm.extended_info()).panics == 0
    async with vm.expect_panic(timeout_s=1):  # it is over two minutes later, when the guest resets itself
        crash = asyncio.create_task(vm.run("echo c > /proc/sysrq-trigger"))
        await vm.wait_for_serial_output("Kernel panic - not syncing: sysrq triggered crash\n")
        crash.cancel()
    await wait_for_panics(vm, 1)
    assert await vm.get_state() is InstanceState.RUNNING


@pytest.mark.requires(server="engine")
async def test_what_a_kernel_without_a_driver_writes_to_the_port_counts_as_well(vm_factory: VmFactory) -> None:
    vm = await with_pvpanic(vm_factory, "micro")
    for count in (1, 2):
        # Bit 0 of port 0x505: panicked.
        await vm.run(r"printf '\001' | dd of=/dev/port bs=1 seek=1285 count=1 conv=notrunc 2>/dev/null")
        await wait_for_panics(vm, count)
    assert await vm.run("echo still here") == "still here"


async def test_a_guest_that_panics_while_it_boots_is_not_waited_for(vm_factory: VmFactory) -> None:
    with pytest.raises(BootError, match="micro panicked while it booted: Kernel panic - not syncing") as raised:
        await vm_factory.start(guest="micro", boot="cold", kernel_arguments="rdinit=/missing root=/dev/missing")
    assert any("---[ end Kernel panic" in line for line in raised.value.console_tail)
