"""The fixture `metrics`: the metrics of VMs, at servers of all kinds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import pytest
from server_program import server_program

from pytest_propolis.errors import CapabilityMissing, MetricsMissing, MetricsTimeout, VmStateError
from pytest_propolis.oximeter.virtual_machine import RESET, VCPU_USAGE, VcpuState
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.metrics.metrics import Metrics
from pytest_propolis.vm.metrics.samples import Samples
from pytest_propolis.vm.vm import TestVm

PROGRAM: Final = "propolis-server-qemu"
SMALL: Final[dict[str, Any]] = {"guest": "micro", "cpus": 1, "memory_mib": 128}
BUSY: Final = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
TOLERANCE: Final = 0.8
"""As PHD's."""

NS_PER_S: Final = 1_000_000_000
ALL: Final = tuple(state for state in VcpuState if state is not VcpuState.EMULATION)


def differences(before: Samples, after: Samples) -> dict[VcpuState, int]:
    return {state: after.vcpu_ns(state) - before.vcpu_ns(state) for state in ALL}


async def processor_time_ns(factory: VmFactory) -> int:
    """How long the VM's QEMU was on processors, by the account of the whole process."""
    (pid,) = [vm.pid for vm in await factory.agent.list_vms() if vm.group == factory.group]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * NS_PER_S // os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.requires(server="engine")  # a program is not the QEMU whose account is compared
async def test_a_busy_guest_runs_as_long_as_its_qemu_does(metrics: Metrics, vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    spent = await processor_time_ns(vm_factory)
    before = await metrics.snapshot(vm)
    await vm.run(BUSY)
    after = await metrics.snapshot(vm)
    spent = await processor_time_ns(vm_factory) - spent
    passed = after.oldest(VCPU_USAGE) - before.oldest(VCPU_USAGE)
    done = differences(before, after)
    assert TOLERANCE * spent < done[VcpuState.RUN] < spent / TOLERANCE
    assert done[VcpuState.RUN] > done[VcpuState.IDLE]
    # A vCPU is always in one of the states. The kernel's accounts are exact to one tick.
    assert sum(done.values()) == pytest.approx(passed.total_seconds() * NS_PER_S, rel=0.05)


async def test_an_idle_guest_is_idle(metrics: Metrics, vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    before = await metrics.snapshot(vm)
    await vm.run("sleep 5")
    done = differences(before, await metrics.snapshot(vm))
    assert done[VcpuState.IDLE] > TOLERANCE * 5 * NS_PER_S - done[VcpuState.WAITING]
    assert done[VcpuState.RUN] < (1 - TOLERANCE) * done[VcpuState.IDLE]


@pytest.mark.parametrize("server", ["engine", pytest.param(PROGRAM, marks=pytest.mark.slow)])
async def test_resets_are_counted_whoever_asks_for_them(vm_factory: VmFactory, metrics: Metrics, server: str) -> None:
    vm = await vm_factory.start(**SMALL, server=server)
    assert (await metrics.poll(vm)).resets == 0
    await vm.reset()
    await vm.wait_to_boot()
    await vm.graceful_reboot()
    samples = await metrics.wait_for(vm, lambda samples: samples if samples.resets == 2 else None)
    assert {sample.timeseries_name for sample in samples.samples} == {VCPU_USAGE, RESET}
    assert {sample.fields["instance_id"] for sample in samples.samples} == {str(vm.properties.id)}
    assert samples.vcpu_ns("run") > 0


async def test_a_fork_that_stood_by_counts_from_its_own_beginning(metrics: Metrics, vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL)
    samples = await metrics.snapshot(vm)
    (since,) = {sample.measurement.datum.cumulative.start_time for sample in samples.named(VCPU_USAGE)}
    passed = samples.oldest(VCPU_USAGE) - since
    total = sum(samples.vcpu_ns(state) for state in ALL)
    assert total == pytest.approx(passed.total_seconds() * NS_PER_S, rel=0.2)


async def test_virtual_cpus_in_one_thread_are_an_error_that_ends_the_wait(
    metrics: Metrics, vm_factory: VmFactory
) -> None:
    vm = await vm_factory.start(**(SMALL | {"cpus": 2}))
    if (await vm_factory.agent.info()).accelerator != "tcg":
        pytest.skip("with KVM each virtual CPU has a thread of its own")
    assert (await metrics.poll(vm)).resets == 0
    with pytest.raises(MetricsMissing, match=r"VM 'vm': .* QEMU runs the 2 virtual CPUs in one thread \(TCG\)"):
        await metrics.snapshot(vm)


async def test_a_wait_that_times_out_says_what_came_last(metrics: Metrics, vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(**SMALL)
    with pytest.raises(MetricsTimeout, match=r"VM 'vm': .*: it has not registered"):
        await metrics.poll(vm, timeout_s=0.5)
    await vm.launch()
    await metrics.snapshot(vm)
    with pytest.raises(MetricsTimeout, match="waited for: it sent virtual_machine:reset, virtual_machine:vcpu_usage"):
        await metrics.wait_for(vm, lambda samples: samples.resets > 0, timeout_s=0.5)
    with pytest.raises(MetricsTimeout, match="no samples of the time that a vCPU has been in the state 'emulation'"):
        await metrics.wait_for(vm, lambda samples: samples.vcpu_ns("emulation"), timeout_s=0.5)


@pytest.mark.parametrize("server", ["engine", PROGRAM])
async def test_a_wait_ends_with_the_vm(metrics: Metrics, vm_factory: VmFactory, server: str) -> None:
    vm = await vm_factory.start(**SMALL, server=server)
    await metrics.poll(vm)
    await vm.stop()
    with pytest.raises(VmStateError, match="VM 'vm': it has ended, and has no metrics any more"):
        await metrics.wait_for(vm, lambda samples: None, timeout_s=600)


@pytest.mark.slow
async def test_a_vm_is_polled_where_it_has_migrated_to(metrics: Metrics, vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(**SMALL, channel="console")  # the program has no guest ports
    await vm.reset()
    await vm.wait_to_boot()
    assert (await metrics.poll(vm)).resets == 1
    heir = await vm_factory.successor(vm, server=PROGRAM)
    await heir.migrate_from(vm)
    assert await metrics.wait_for(heir, lambda samples: samples.resets == 0), "as propolis-server, it counts anew"
    before = await metrics.snapshot(heir)
    await heir.run(BUSY)
    assert differences(before, await metrics.snapshot(heir))[VcpuState.RUN] > 0


async def test_a_server_that_runs_already_has_metrics_if_it_was_told_where_to_register(
    metrics: Metrics, vm_factory: VmFactory
) -> None:
    where = ("--metric-addr", metrics.address)
    async with server_program("bios", "127.0.0.1:0", "--accelerator", "tcg", *where) as server:
        vm = await vm_factory.create(guest="micro", cpus=1, server=f"http://{server.address}")
        await vm.launch()
        assert (await metrics.snapshot(vm)).resets == 0
        await vm.stop()


async def test_a_server_that_runs_already_and_does_not_register_is_told_apart(
    metrics: Metrics, vm_factory: VmFactory
) -> None:
    async with server_program("bios", "127.0.0.1:0", "--accelerator", "tcg") as server:
        url = f"http://{server.address}"
        vm = await vm_factory.create(guest="micro", server=url)
        await vm.launch()
        with pytest.raises(MetricsTimeout, match="it has not registered") as caught:
            await metrics.poll(vm, timeout_s=0.5)
        assert (
            f"{url} registers where it was told to: start it with --metric-addr {metrics.address}" == caught.value.hint
        )
        await vm.stop()


async def test_a_server_program_without_metrics_is_named(
    metrics: Metrics, vm_factory: VmFactory, tmp_path: Path
) -> None:
    program = tmp_path / "old-server"
    program.write_text("#!/bin/sh\necho '--kernel'\n")
    program.chmod(0o700)
    with pytest.raises(CapabilityMissing, match=f"{program} has no option --metric-addr, and so no metrics"):
        await vm_factory.start(**SMALL, server=program)
    assert [vm for vm in await vm_factory.agent.list_vms() if vm.group == vm_factory.group] == []


async def test_vms_without_the_fixture_register_nowhere(vm_factory: VmFactory) -> None:
    vm: TestVm = await vm_factory.start(**SMALL, server=PROGRAM)
    assert "registered" not in (vm.log_path.parent / "vm.server.log").read_text()


async def test_a_factory_of_a_wider_scope_is_given_what_collects_its_metrics(propolis: Run) -> None:
    async with propolis.metrics() as metrics, propolis.vm_factory(metrics=metrics) as factory:
        vm = await factory.start(**SMALL)
        assert (await metrics.poll(vm)).resets == 0
