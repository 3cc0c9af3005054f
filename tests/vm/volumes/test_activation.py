"""A VM whose volume cannot be brought up can be stopped, and corrected while it starts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import pytest_asyncio
from volume_checks import ACTIVE, MICRO, WRITE, all_active, replicas, wait_for_status

from pytest_propolis import ApiError, CrucibleDisk, CrucibleDiskFactory, InstanceState, TestVm, VmFactory
from pytest_propolis.propolis_api import InstanceStateRequested, ReplaceResult

CREATED: dict[str, Any] = {**MICRO, "boot": "cold"}


@pytest_asyncio.fixture
async def disk(crucible_disk_factory: CrucibleDiskFactory) -> CrucibleDisk:
    return await crucible_disk_factory(size_mib=64)


async def blocked(vm_factory: VmFactory, disk: CrucibleDisk) -> TestVm:
    """Return a VM whose start is blocked."""
    disk.enable_vcr_black_hole()
    vm = await vm_factory.create("vm", disks=(disk,), **CREATED)
    await vm.launch()
    await vm.wait_for_state(InstanceState.STARTING)
    return vm


async def test_a_corrected_request_unblocks_a_start(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    vm = await blocked(vm_factory, disk)
    assert (await disk.status()).targets[1].state != ACTIVE
    disk.disable_vcr_black_hole()
    disk.set_generation(2)
    assert await disk.replace_vcr() is ReplaceResult.STARTED
    await vm.wait_for_state(InstanceState.RUNNING)
    await vm.wait_to_boot()
    written = (await vm.run(WRITE)).split()[0]
    await wait_for_status(disk, all_active)
    disk.set_generation(3)
    assert await disk.replace_vcr() is ReplaceResult.VCR_MATCHES
    await vm.stop()
    assert await replicas(disk) == [written] * 3


async def test_a_stop_ends_a_start_that_is_blocked(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    vm = await blocked(vm_factory, disk)
    await vm.stop()
    assert await vm.get_state() is InstanceState.DESTROYED


async def test_a_stop_and_a_corrected_request_at_once_end_the_vm(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    vm = await blocked(vm_factory, disk)
    disk.disable_vcr_black_hole()
    disk.set_generation(2)
    replaced, _ = await asyncio.gather(
        disk.replace_vcr(), vm.client.instance_state_put(InstanceStateRequested.STOP), return_exceptions=True
    )
    await vm.wait_for_state(InstanceState.DESTROYED)
    # Which of the two came first decides.
    assert replaced is ReplaceResult.STARTED or (isinstance(replaced, ApiError) and replaced.status == 410)


async def test_a_downstairs_that_comes_late_is_waited_for(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    await disk.kill(1)
    vm = await vm_factory.create("vm", disks=(disk,), **CREATED)
    await vm.launch()
    await vm.wait_for_state(InstanceState.STARTING)
    await disk.restart(1)
    await vm.wait_for_state(InstanceState.RUNNING)
    await wait_for_status(disk, all_active)


async def test_a_downstairs_is_replaced_before_the_volume_is_used(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    first = await vm_factory.start("first", disks=(disk,), **MICRO)
    written = (await first.run(WRITE)).split()[0]
    await first.stop()
    await disk.kill(2)
    await disk.replace_downstairs(2)
    second = await vm_factory.successor(first)
    await second.launch()
    await second.wait_for_state(InstanceState.RUNNING)
    await wait_for_status(disk, all_active)
    await second.stop()
    assert await replicas(disk) == [written] * 3


async def test_a_lower_generation_fails_the_vm(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    disk.set_generation(5)
    first = await vm_factory.start("first", disks=(disk,), **MICRO)
    await first.stop()
    disk.set_generation(4)
    second = await vm_factory.create("second", disks=(disk,), **CREATED)
    await second.launch()
    await second.wait_for_state(InstanceState.FAILED)
    assert "generation 4 is lower than 5" in ((await second.extended_info()).failure or "")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda vcr: vcr.pop("id"), "the volume construction request is not valid: .*`id`"),
        (lambda vcr: vcr["sub_volumes"].append(vcr["sub_volumes"][0]), "has 2 sub-volumes.*a disk of its own"),
        (
            lambda vcr: vcr["sub_volumes"][0]["opts"].update(target=["a", "b", "c"]),
            "'a' is not an address: give",
        ),
    ],
)
async def test_nonsense_is_refused_with_the_name_of_the_disk(
    vm_factory: VmFactory, disk: CrucibleDisk, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    vcr = disk.vcr()
    change(vcr)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "vcr_json", lambda: json.dumps(vcr))
        vm = await vm_factory.create("vm", disks=(disk,), **CREATED)
        with pytest.raises(ApiError, match=f"backend 'crucible-disk-backend': .*{complaint}") as refusal:
            await vm.ensure()
        assert refusal.value.status == 400


def doubled(vcr: dict[str, Any]) -> None:
    vcr["sub_volumes"][0]["extent_count"] *= 2


def over_a_file(vcr: dict[str, Any]) -> None:
    vcr["read_only_parent"] = {"type": "file", "id": vcr["id"], "block_size": 4096, "path": "/nowhere"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (doubled, "has 67108864 bytes in blocks of 4096, and the request says 134217728 in blocks of 4096: correct it"),
        (over_a_file, "does not lie over the read-only parent /nowhere: leave that out"),
        (lambda vcr: vcr["sub_volumes"][0]["opts"].update(key="other"), "the key is not this region's"),
        (lambda vcr: vcr["sub_volumes"][0]["opts"].update(id=vcr["id"]), "this region belongs to volume"),
    ],
    ids=["size", "parent", "key", "id"],
)
async def test_a_request_that_does_not_fit_its_downstairs_fails_the_vm_and_names_the_disk(
    vm_factory: VmFactory, disk: CrucibleDisk, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    vcr = disk.vcr()
    change(vcr)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "vcr_json", lambda: json.dumps(vcr))
        vm = await vm_factory.create("vm", disks=(disk,), **CREATED)
        await vm.launch()
    await vm.wait_for_state(InstanceState.FAILED)
    failure = (await vm.extended_info()).failure or ""
    assert "backend 'crucible-disk-backend'" in failure
    assert complaint in failure


async def test_replacements_are_refused_as_upstream_does(vm_factory: VmFactory, disk: CrucibleDisk) -> None:
    vm = await vm_factory.create("vm", disks=(disk,), **CREATED)
    await vm.ensure()
    with pytest.raises(ApiError, match="identical") as refusal:
        await disk.replace_vcr()
    assert refusal.value.status == 400
    disk.set_generation(0)
    with pytest.raises(ApiError, match="generation 0 is lower than 1"):
        await disk.replace_vcr()
    disk.set_generation(2)
    assert await disk.replace_vcr() is ReplaceResult.VCR_MATCHES
    with pytest.raises(ApiError, match="No crucible backend") as missing:
        await vm.client.disk_volume_status("other")
    assert missing.value.status == 404
