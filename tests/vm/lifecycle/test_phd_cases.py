"""PHD's assertions about a VM's states, processors and console, on real guests."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_propolis.errors import ApiError
from pytest_propolis.propolis_api import InstanceState, InstanceStateRequested, PresentSpec
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.vm import TestVm

SMALL: dict[str, Any] = {"guest": "micro", "cpus": 1, "memory_mib": 256}
RUN, STOP, REBOOT = InstanceStateRequested.RUN, InstanceStateRequested.STOP, InstanceStateRequested.REBOOT


async def refusal(vm: TestVm, requested: InstanceStateRequested) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as caught:
        await vm.client.instance_state_put(requested)
    return caught.value.status, caught.value.error_code


# smoke


async def test_the_guest_sees_six_processors(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="micro", cpus=6, memory_mib=256)
    assert await vm.run("nproc") == "6"


@pytest.mark.slow
async def test_a_guest_boots_again_after_a_reset_and_after_its_own_reboot(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    await vm.run("touch /tmp/here")
    await vm.reset()
    await vm.wait_to_boot()
    assert (await vm.run_result("test -e /tmp/here")).status == 1
    await vm.run("touch /tmp/here")
    await vm.graceful_reboot()
    assert (await vm.run_result("test -e /tmp/here")).status == 1
    # Creating, Starting, Running; Rebooting and Running, twice.
    assert (await vm.client.instance_state_monitor(0)).gen == 7


async def test_the_spec_tells_processors_and_memory(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", cpus=4, memory_mib=3072)
    await vm.launch()
    answer = await vm.client.instance_spec_get()
    assert isinstance(answer.spec, PresentSpec)
    assert answer.spec.value.board.cpus == 4
    assert answer.spec.value.board.memory_mb == 3072
    assert answer.spec.value == vm.spec
    assert answer.properties == vm.properties


# framework


async def test_a_command_of_many_lines_and_a_long_one_come_through(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    assert await vm.run("echo \\\nhello \\\nworld") == "hello world"
    assert await vm.run("echo one\necho two\necho three") == "one\ntwo\nthree"
    long = " ".join(f"word{number}" for number in range(40))
    assert len(long) > 250
    assert await vm.run(f"echo {long}") == long


# server_state_machine


async def test_start_and_stop(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL)
    await vm.ensure()
    assert await vm.get_state() is InstanceState.CREATING
    await vm.run_instance()
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.client.instance_state_put(STOP)
    await vm.wait_for_state(InstanceState.DESTROYED)


async def test_a_vm_that_was_never_started_can_be_stopped(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL)
    await vm.ensure()
    await vm.client.instance_state_put(STOP)
    await vm.wait_for_state(InstanceState.DESTROYED)
    # Creating, Stopping, Stopped, Destroyed.
    assert (await vm.client.instance_state_monitor(0)).gen == 4


async def test_a_stop_destroys_and_then_nothing_can_be_asked(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL)
    await vm.launch()
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.client.instance_state_put(STOP)
    await vm.wait_for_state(InstanceState.DESTROYED)
    for requested in (RUN, STOP, REBOOT):
        assert await refusal(vm, requested) == (424, "NoInstance")


async def test_a_reset_needs_a_running_vm(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL)
    assert await refusal(vm, REBOOT) == (424, "NoInstance")
    await vm.ensure()
    denied = "instance state change not allowed: Operation requires an active instance"
    assert await refusal(vm, REBOOT) == (403, denied)
    await vm.run_instance()
    await vm.wait_for_state(InstanceState.RUNNING)
    for _ in range(10):
        await vm.client.instance_state_put(REBOOT)
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.wait_to_boot()
    assert await vm.run("echo up") == "up"
    await vm.stop()
    assert await refusal(vm, REBOOT) == (424, "NoInstance")


# Of the guest's own accord


async def test_a_triple_fault_is_a_reboot(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    await vm.run("touch /tmp/here; echo triple >/sys/kernel/reboot/type")
    assert "triple" in await vm.run("cat /sys/kernel/reboot/type")
    await vm.graceful_reboot()
    assert (await vm.run_result("test -e /tmp/here")).status == 1
    answer = await vm.client.instance_state_monitor(0)
    # Creating, Starting, Running, Rebooting, Running.
    assert (answer.gen, answer.state) == (5, InstanceState.RUNNING)


async def test_a_shutdown_of_the_guest_destroys(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    async with vm.interactive() as console:
        await console.send("poweroff -f\n")
        await vm.wait_for_state(InstanceState.DESTROYED)
    assert (await vm.client.instance_state_monitor(0)).gen == 6
    assert await refusal(vm, STOP) == (424, "NoInstance")


# Beside PHD's


async def test_an_nmi_reaches_the_guest(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)

    async def nmis() -> int:
        return int((await vm.run("grep NMI: /proc/interrupts")).split()[1])

    before = await nmis()
    assert await nmis() == before
    await vm.client.issue_nmi()
    assert await nmis() == before + 1
