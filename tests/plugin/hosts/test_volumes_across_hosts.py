"""Replicated disks whose VMs move to another host of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import volume_checks
from inner_run import InnerRun

MOVED = """
import sys
sys.path.insert(0, {support!r})
import pytest
from pytest_propolis import InstanceState
from volume_checks import MICRO, all_active, begin_to_write, end_of_writing, replicas, wait_for_status


@pytest.mark.multi_node(2)
async def test_moved(crucible_disk_factory, vm_factory, remote_hosts):
    here, there = remote_hosts
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("source", disks=(disk,), host=here, **MICRO)
    await begin_to_write(vm)
    for host in (there, here):
        target = await vm_factory.successor(vm, host=host)
        await target.migrate_from(vm)
        await target.wait_for_state(InstanceState.RUNNING)
        await vm.wait_for_state(InstanceState.DESTROYED)
        vm = target
        await disk.replace_downstairs(1)
        await wait_for_status(disk, all_active)
    written = await end_of_writing(vm)
    await vm.stop()
    assert disk.generation == 5
    assert await replicas(disk) == [written] * 3
"""


@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["alone", "workers"])
def test_a_volume_goes_with_its_vm_to_another_host_and_back(inner: InnerRun, workers: tuple[str, ...]) -> None:
    inner.write(test_it=MOVED.format(support=str(Path(volume_checks.__file__).parent)))
    inner.run("--propolis-hosts", "local:2", *workers).assert_outcomes(passed=1)
