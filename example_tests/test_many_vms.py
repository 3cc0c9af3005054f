"""More VMs than one, and more disks."""

import asyncio

from pytest_propolis import DataDisk, InstanceState, VmFactory


async def test_two_vms(vm_factory: VmFactory) -> None:
    """VMs of one test boot and work side by side; each has a name, and log files of that name."""
    small, large = await asyncio.gather(
        vm_factory.start("small", guest="micro", memory_mib=192, cpus=1),
        vm_factory.start("large", guest="micro", memory_mib=384, cpus=2),
    )
    processors = await asyncio.gather(small.run("nproc"), large.run("nproc"))
    assert list(processors) == ["1", "2"]
    await small.stop()
    assert await small.get_state() is InstanceState.DESTROYED
    assert await large.run("echo I am not concerned") == "I am not concerned"


async def test_a_data_disk(vm_factory: VmFactory) -> None:
    """A disk beside the one that the guest boots from; gone with its VM."""
    vm = await vm_factory.start("store", disks=(DataDisk(name="data", size_mib=64),))
    assert await vm.run("cat /sys/block/vdb/size") == str(64 * 1024 * 1024 // 512)
    await vm.run("mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt")
    await vm.run("echo precious >/mnt/file; umount /mnt; mount /dev/vdb /mnt")
    assert await vm.run("cat /mnt/file") == "precious"
