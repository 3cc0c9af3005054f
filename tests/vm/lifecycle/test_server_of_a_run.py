"""The server program that a run names, with the run's guest: a real `propolis-server` on illumos, or any other one.

``pytest --propolis-server ./propolis-server --propolis-guest NAME`` runs them; with the engine they are skipped.
"""

from __future__ import annotations

from typing import Final

import pytest

from pytest_propolis.errors import CapabilityMissing
from pytest_propolis.oximeter.virtual_machine import VcpuState
from pytest_propolis.propolis_api import InstanceState, PresentSpec
from pytest_propolis.session.run import Run
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.metrics.metrics import Metrics

pytestmark = pytest.mark.requires(server="propolis")

BOOT_ID: Final = "cat /proc/sys/kernel/random/boot_id"


async def test_a_guest_boots_reboots_migrates_and_stops(vm_factory: VmFactory, propolis: Run) -> None:
    vm = await vm_factory.start()
    assert vm.boot_kind == "cold"
    found = await vm.get_spec()
    assert isinstance(found, PresentSpec)
    assert found.value.board.cpus == propolis.settings.cpus
    booted = await vm.run(BOOT_ID)
    await vm.graceful_reboot()
    rebooted = await vm.run(BOOT_ID)
    assert rebooted != booted
    await vm.reset()
    await vm.wait_to_boot()
    running = await vm.run(BOOT_ID)
    assert running not in (booted, rebooted)
    for _ in range(2):
        target = await vm_factory.successor(vm)
        await target.migrate_from(vm)
        vm = target
    assert await vm.run(BOOT_ID) == running
    await vm.stop()
    assert await vm.get_state() is InstanceState.DESTROYED


async def test_its_virtual_cpus_are_measured(vm_factory: VmFactory, metrics: Metrics) -> None:
    vm = await vm_factory.start(cpus=1)
    before = await metrics.snapshot(vm)
    await vm.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    after = await metrics.snapshot(vm)
    assert after.vcpu_ns(VcpuState.RUN) > before.vcpu_ns(VcpuState.RUN)


async def test_features_of_the_engine_are_refused_before_anything_starts(vm_factory: VmFactory) -> None:
    with pytest.raises(CapabilityMissing):
        await vm_factory.create(display=True)
    assert vm_factory.vms == []
