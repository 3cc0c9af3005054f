"""The hardware that a guest detects."""

from __future__ import annotations

import msgspec
import pytest

from pytest_propolis.errors import ApiError
from pytest_propolis.propolis_api import QemuPvpanic, QemuPvpanicComponent, SmbiosType1Input
from pytest_propolis.vm.config import BOOT_DISK, DataDisk
from pytest_propolis.vm.factory import VmFactory


async def test_the_guest_sees_its_identity_its_processors_and_its_devices(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(
        guest="micro", cpus=2, memory_mib=256, disks=(DataDisk(name="data", size_mib=8, interface="virtio"),)
    )
    vm.spec = msgspec.structs.replace(
        vm.spec,
        smbios=SmbiosType1Input(manufacturer="Maker, Inc.", product_name="Board", serial_number="S-1", version=7),
        components=vm.spec.components | {"pvpanic": QemuPvpanicComponent(QemuPvpanic(enable_isa=True))},
    )
    await vm.boot()
    assert (await vm.get_spec()).value == vm.spec
    identity = await vm.run("cd /sys/class/dmi/id; cat sys_vendor product_name product_serial product_version")
    assert identity.splitlines() == ["Maker, Inc.", "Board", "S-1", "7"]
    assert await vm.run("cat /sys/class/dmi/id/product_uuid") == str(vm.properties.id)
    assert await vm.run("ls -d /sys/bus/acpi/devices/QEMU0001*")
    assert await vm.run("grep -c ^processor /proc/cpuinfo") == "2"
    assert int((await vm.run("grep MemTotal /proc/meminfo")).split()[1]) in range(180 << 10, 256 << 10)
    # Slot 4 is the first that a disk gets.
    assert await vm.run("cat /sys/bus/pci/devices/0000:00:04.0/vendor") == "0x1af4"


@pytest.mark.slow
async def test_alpine_has_a_writable_root_on_an_nvme_disk(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(guest="alpine", disk_interface="nvme")
    assert (await vm.run("awk '$2 == \"/\" {print $1, $3}' /proc/mounts")).split()[-1] == "ext4"
    assert await vm.run("ls /dev/nvme0n1") == "/dev/nvme0n1"
    assert (await vm.run("cat /sys/block/nvme0n1/device/serial")).strip() == BOOT_DISK
    await vm.run("echo kept > /root/file && sync")
    await vm.graceful_reboot()
    assert await vm.run("cat /root/file") == "kept"


async def test_a_spec_that_contradicts_itself_answers_400_and_names_the_component(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", disks=(DataDisk(name="data", size_mib=1),))
    components = {key: part for key, part in vm.spec.components.items() if key != "data-backend"}
    vm.spec = msgspec.structs.replace(vm.spec, components=components)
    with pytest.raises(ApiError, match="disk 'data' names backend 'data-backend'") as caught:
        await vm.ensure()
    assert caught.value.status == 400


async def test_a_backend_that_is_not_there_answers_500_and_the_vm_has_failed(vm_factory: VmFactory) -> None:
    vm = await vm_factory.create(guest="micro", disks=(DataDisk(name="data", size_mib=1),))
    backend = vm.spec.components["data-backend"]
    missing = msgspec.structs.replace(
        backend, component=msgspec.structs.replace(backend.component, path="/nowhere/disk.qcow2")
    )
    vm.spec = msgspec.structs.replace(vm.spec, components=vm.spec.components | {"data-backend": missing})
    with pytest.raises(ApiError, match=r"VM initialization failed: .*/nowhere/disk\.qcow2") as caught:
        await vm.ensure()
    assert caught.value.status == 500
    assert await vm.get_state() == "Failed"
