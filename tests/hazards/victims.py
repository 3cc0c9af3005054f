"""Victims: the uses of VMs in the runs that the fuzzer disturbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["VICTIMS", "Victim"]


@dataclass(frozen=True)
class Victim:
    """A test module, and the environment of its run."""

    name: str
    test: str
    environment: Mapping[str, str] = field(default_factory=dict, compare=False)


# These VMs are never run: their QEMU is there and costs little.
CREATED = """
import pytest
from pytest_propolis import DataDisk, PropolisError

@pytest.mark.parametrize("number", range(3))
async def test_victim(vm_factory, number):
    for name in ("first", "second"):
        vm = await vm_factory.create(name, guest="micro", disks=(DataDisk(name="data", size_mib=1),))
        await vm.ensure()
    with pytest.raises(PropolisError):
        await vm.wait_for_serial_output("this never comes", timeout_s=0.3)
"""

FORKED = """
import pytest

@pytest.mark.parametrize("number", range(2))
async def test_victim(vm_factory, number):
    for name in ("first", "second"):
        vm = await vm_factory.start(name, guest="micro")
        assert await vm.run("echo up") == "up"
"""

MIGRATED = """
import pytest
from pytest_propolis import InstanceState

@pytest.mark.parametrize("number", range(2))
async def test_victim(vm_factory, number):
    vm = await vm_factory.start("source", guest="micro", memory_mib=128)
    target = await vm_factory.successor(vm)
    await target.migrate_from(vm)
    await vm.wait_for_state(InstanceState.DESTROYED)
    assert await target.run("echo up") == "up"
"""

REPLICATED = """
async def test_victim(crucible_disk_factory, vm_factory):
    disk = await crucible_disk_factory(size_mib=64)
    vm = await vm_factory.start("vm", guest="micro", memory_mib=128, disks=(disk,), boot_timeout_s=60)
    await vm.run("modprobe virtio_blk; until [ -b /dev/vda ]; do usleep 20000; done")
    await vm.run("dd if=/dev/urandom of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null")
    await disk.replace_downstairs(0)
    assert await vm.run("echo up") == "up"
"""

NETWORKED = """
from pytest_propolis import Nic

async def test_victim(vm_factory):
    lan = vm_factory.network("lan")
    first = await vm_factory.start("first", guest="micro", memory_mib=128, nics=(Nic(network=lan),))
    second = await vm_factory.start("second", guest="micro", memory_mib=128, nics=(Nic(network=lan),))
    await first.run(f"ping -c 1 -W 20 {second.address(lan)}", timeout_s=60)
"""

VICTIMS: Final = (
    Victim("created", CREATED),
    Victim("forked", FORKED),
    Victim("standing by", FORKED, {"PROPOLIS_STANDBY": "1"}),
    Victim("migrated", MIGRATED),
    Victim("replicated", REPLICATED),
    Victim("networked", NETWORKED),
)
"""All but the first fork the same templates, which the first run of a kind makes if need be."""
