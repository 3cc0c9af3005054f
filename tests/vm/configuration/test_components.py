"""Components of a spec, as a guest finds them. One guest for all that can be in one machine."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from pytest_propolis.engine.qemu.devices.network import mac_address
from pytest_propolis.propolis_api import (
    Component,
    MigrationFailureInjector,
    MigrationFailureInjectorComponent,
    PciPath,
    PciPciBridge,
    PciPciBridgeComponent,
    VirtioNetworkBackend,
    VirtioNetworkBackendComponent,
    VirtioNic,
    VirtioNicComponent,
)
from pytest_propolis.session.run import Run
from pytest_propolis.vm.config import DataDisk, Nic
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRITABLE = b"written by the host\n".ljust(4096, b"w")
READONLY = b"read only\n".ljust(1024, b"r")
INTERFACE = uuid.UUID("a1b2c3d4-0000-4000-8000-00000000e5f6")

DISKS = (
    DataDisk(name="writable", contents=WRITABLE),
    DataDisk(name="readonly", contents=READONLY, readonly=True, pci_slot=24),
    DataDisk(name="big-blocks", size_mib=1, block_size=4096),
    DataDisk(name="nvme-disk", size_mib=1, interface="nvme", readonly=True),
    DataDisk(name="nvme-memory", contents=READONLY, interface="nvme"),
)


def bridge(downstream_bus: int, *, bus: int, device: int) -> Component:
    path = PciPath(bus=bus, device=device, function=0)
    return PciPciBridgeComponent(PciPciBridge(downstream_bus=downstream_bus, pci_path=path))


def card(backend: str, *, bus: int, device: int, function: int, interface: uuid.UUID) -> Component:
    path = PciPath(bus=bus, device=device, function=function)
    return VirtioNicComponent(VirtioNic(backend_id=backend, interface_id=interface, pci_path=path))


def isolated() -> Component:
    return VirtioNetworkBackendComponent(VirtioNetworkBackend(vnic_name="user:isolated"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(propolis: Run) -> AsyncIterator[TestVm]:
    async with propolis.vm_factory() as factory:
        vm = await factory.create(guest="micro", cpus=1, memory_mib=256, disks=DISKS, nics=(Nic(link="user"),))
        moved = vm.spec.components["big-blocks"]
        vm.spec = replace(
            vm.spec,
            components=vm.spec.components
            | {
                # In an order in which QEMU would not take them.
                "inner-bridge": bridge(2, bus=1, device=3),
                "outer-bridge": bridge(1, bus=0, device=10),
                "big-blocks": replace(
                    moved, component=replace(moved.component, pci_path=PciPath(bus=2, device=5, function=0))
                ),
                "one": card("one-link", bus=0, device=12, function=0, interface=INTERFACE),
                "two": card("two-link", bus=0, device=12, function=3, interface=uuid.uuid4()),
                "one-link": isolated(),
                "two-link": isolated(),
                "injector": MigrationFailureInjectorComponent(MigrationFailureInjector(fail_exports=1, fail_imports=1)),
            },
        )
        await vm.boot()
        await vm.run("modprobe -a virtio_blk nvme virtio_net")
        await vm.run(
            f"while [ $(ls /sys/class/block | grep -cE '^(vd|nvme.n)') -lt {len(DISKS)} ]; do usleep 50000; done"
        )
        yield vm


async def block_device(vm: TestVm, address: str) -> str:
    """The name of the disk at a PCI address."""
    found = await vm.run(
        f"ls -d /sys/bus/pci/devices/{address}/virtio*/block/* /sys/bus/pci/devices/{address}/nvme/*/*n1 2>&-",
        check=False,
    )
    return found.splitlines()[-1].rpartition("/")[2]


async def test_the_spec_is_read_back_as_it_was_sent(vm: TestVm) -> None:
    assert (await vm.get_spec()).value == vm.spec


async def test_a_blob_is_a_disk_with_its_contents_that_the_guest_may_write(vm: TestVm) -> None:
    name = await block_device(vm, "0000:00:04.0")
    assert await vm.run_bytes(f"cat /dev/{name}") == WRITABLE
    await vm.run(f"printf new | dd of=/dev/{name} bs=512 seek=1 conv=notrunc,fsync 2>&-")
    await vm.run("echo 3 > /proc/sys/vm/drop_caches")
    assert await vm.run_bytes(f"cat /dev/{name}") == WRITABLE[:512] + b"new" + WRITABLE[515:]


async def test_a_readonly_blob_sits_in_its_slot_and_cannot_be_written(vm: TestVm) -> None:
    name = await block_device(vm, "0000:00:18.0")
    assert await vm.run_bytes(f"cat /dev/{name}") == READONLY
    assert await vm.run(f"cat /sys/block/{name}/ro") == "1"
    assert (await vm.run_result(f"dd if=/dev/zero of=/dev/{name} bs=512 count=1 conv=fsync")).status != 0
    assert await vm.run_bytes(f"cat /dev/{name}") == READONLY


async def test_a_disk_has_the_block_size_of_its_backend(vm: TestVm) -> None:
    name = await block_device(vm, "0000:02:05.0")
    sizes = await vm.run(f"cd /sys/block/{name}/queue; cat logical_block_size physical_block_size")
    assert sizes.split() == ["4096", "4096"]


async def test_nvme_disks_have_serial_numbers_and_can_be_read_only_or_in_memory(vm: TestVm) -> None:
    file, memory = await block_device(vm, "0000:00:06.0"), await block_device(vm, "0000:00:07.0")
    serials = await vm.run(f"cat /sys/block/{file}/device/serial /sys/block/{memory}/device/serial")
    assert [serial.strip() for serial in serials.splitlines()] == ["nvme-disk", "nvme-memory"]
    assert await vm.run_bytes(f"cat /dev/{memory}") == READONLY
    # QEMU's NVMe does not tell the guest that a disk is read-only, but lets no write through.
    write = "dd if=/dev/zero of=/dev/{} bs=512 count=1 conv=fsync"
    assert (await vm.run_result(write.format(file))).status != 0
    assert (await vm.run_result(write.format(memory))).status == 0


async def test_bridges_lead_to_the_devices_behind_them(vm: TestVm) -> None:
    place = await vm.run("readlink -f /sys/bus/pci/devices/0000:02:05.0")
    assert place == "/sys/devices/pci0000:00/0000:00:0a.0/0000:01:03.0/0000:02:05.0"


async def test_functions_of_one_slot_are_devices_of_their_own(vm: TestVm) -> None:
    for address in ("0000:00:0c.0", "0000:00:0c.3"):
        assert await vm.run(f"cat /sys/bus/pci/devices/{address}/vendor") == "0x1af4"


async def test_a_card_has_the_address_that_follows_from_its_id(vm: TestVm) -> None:
    addresses = await vm.run("cat /sys/bus/pci/devices/0000:00:0c.0/virtio*/net/*/address")
    assert addresses == mac_address(INTERFACE)


async def test_all_four_serial_ports_are_there(vm: TestVm) -> None:
    ports = [line.split()[1:3] for line in (await vm.run("grep 16550A /proc/tty/driver/serial")).splitlines()]
    assert ports == [["uart:16550A", f"port:00000{port}"] for port in ("3F8", "2F8", "3E8", "2E8")]
