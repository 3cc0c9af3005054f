"""Devices that a fork has and its template lacks: present when the test begins, as after a boot with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_propolis.engine.qemu.devices.network import mac_address
from pytest_propolis.errors import ApiError, ArtifactMissing
from pytest_propolis.propolis_api import (
    Component,
    FileStorageBackend,
    FileStorageBackendComponent,
    InstanceState,
    NvmeDisk,
    PciPath,
    QemuPvpanic,
    QemuPvpanicComponent,
    VirtioDisk,
    VirtioDiskComponent,
    VirtioNic,
)
from pytest_propolis.vm.config import DataDisk, Nic
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.lifecycle import Migrate, Reset, StopAndStart
from pytest_propolis.vm.vm import TestVm

pytestmark = pytest.mark.requires(server="engine")

MIB = 1 << 20
ALPINE: dict[str, Any] = {"guest": "alpine", "cpus": 2, "memory_mib": 512}
MICRO: dict[str, Any] = {"guest": "micro", "cpus": 1, "memory_mib": 256}
NAMES = "cd /sys/block && for disk in vd* nvme*; do [ -e $disk ] && echo $disk $(head -c 6 /dev/$disk); done; cd"


def image(path: Path, text: str, *, mib: int = 8) -> Path:
    path.write_bytes(text.encode().ljust(mib * MIB, b"\0"))
    return path


def with_partition(path: Path) -> Path:
    """An MBR with one partition of Linux's, from sector 2048 on."""
    entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (2048).to_bytes(4, "little")
    path.write_bytes((bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa").ljust(8 * MIB, b"\0"))
    return path


async def fork(vm_factory: VmFactory, name: str, *disks: DataDisk, **changes: Any) -> TestVm:
    vm = await vm_factory.start(name, disks=disks, **{**ALPINE, **changes})
    assert vm.boot_kind == "warm"
    return vm


def some_disks(directory: Path) -> tuple[DataDisk, ...]:
    return (
        DataDisk(name="empty", size_mib=8),
        DataDisk(name="image", image=image(directory / "image", "image!")),
        DataDisk(name="blob", contents=b"blob!!".ljust(MIB, b"\0"), readonly=True),
        DataDisk(name="nvme", image=image(directory / "nvme", "nvme!!"), interface="nvme"),
        DataDisk(name="after", size_mib=16),
    )


async def test_a_driver_that_is_loaded_at_once_finds_its_disk(vm_factory: VmFactory) -> None:
    for number in range(8):
        vm = await fork(vm_factory, f"fork{number}", DataDisk(name="empty", size_mib=8), **MICRO)
        await vm.run("modprobe virtio_blk && test -b /dev/vda")
        await vm.aclose()


@pytest.mark.slow
async def test_disks_are_where_they_are_after_a_boot(vm_factory: VmFactory, tmp_path: Path) -> None:
    disks = some_disks(tmp_path)
    vm = await fork(vm_factory, "fork", *disks)
    found = await vm.run(NAMES)
    sizes = await vm.run("cat /sys/block/vd?/size")
    booted = await vm_factory.start("booted", disks=disks, boot="cold", **ALPINE)
    assert (await booted.run(NAMES), await booted.run("cat /sys/block/vd?/size")) == (found, sizes)
    assert [line.split()[-1] for line in found.splitlines()][2:] == ["image!", "blob!!", "vde", "nvme!!"]
    assert (await vm.get_spec()).value.components.keys() >= {disk.name for disk in disks}


async def test_what_a_fork_writes_to_its_disk_the_image_never_has(vm_factory: VmFactory, tmp_path: Path) -> None:
    disk = DataDisk(name="data", image=image(tmp_path / "image", "as it was"))
    first = await fork(vm_factory, "first", disk)
    await first.run("echo changed | dd of=/dev/vdb conv=fsync,notrunc 2>/dev/null")
    assert await first.run("head -c 7 /dev/vdb") == "changed"
    second = await fork(vm_factory, "second", disk)
    assert await second.run("head -c 9 /dev/vdb") == "as it was"
    await first.aclose()
    assert (tmp_path / "image").read_bytes()[:9] == b"as it was"


async def test_partitions_are_known_when_the_test_begins(vm_factory: VmFactory, tmp_path: Path) -> None:
    vm = await fork(vm_factory, "vm", DataDisk(name="data", image=with_partition(tmp_path / "image")))
    assert await vm.run("ls /dev/vdb1") == "/dev/vdb1"


@pytest.mark.slow
async def test_a_fork_migrates_with_its_disks_and_boots_with_them(vm_factory: VmFactory, tmp_path: Path) -> None:
    disks = (
        DataDisk(name="image", image=image(tmp_path / "image", "image!")),
        DataDisk(name="blob", contents=b"blob!!".ljust(MIB, b"\0")),
    )
    vm = await fork(vm_factory, "vm", *disks)
    await vm.run("echo mine | dd of=/dev/vdc conv=fsync,notrunc 2>/dev/null")
    vm = await Migrate().perform(vm_factory, vm)
    assert await vm.run("head -c 6 /dev/vdb; head -c 4 /dev/vdc") == "image!mine"
    vm = await Reset().perform(vm_factory, vm)
    assert await vm.run("head -c 6 /dev/vdb; head -c 4 /dev/vdc") == "image!mine"
    await vm.run("echo twice | dd of=/dev/vdb conv=fsync,notrunc 2>/dev/null")
    vm = await StopAndStart().perform(vm_factory, vm)
    assert await vm.run("head -c 5 /dev/vdb; head -c 4 /dev/vdc") == "twiceblob"


async def test_a_fork_that_the_test_creates_and_runs_itself_has_its_disks(
    vm_factory: VmFactory, tmp_path: Path
) -> None:
    disk = DataDisk(name="data", image=image(tmp_path / "image", "image!"), interface="nvme")
    vm = await vm_factory.create("vm", boot="warm", disks=(disk,), **ALPINE)
    await vm.ensure()
    assert await vm.get_state() is InstanceState.CREATING
    await vm.run_instance()
    await vm.wait_to_boot()
    assert await vm.run("head -c 6 /dev/nvme0n1") == "image!"


async def test_cards_are_there_and_have_addresses_of_their_own(vm_factory: VmFactory) -> None:
    addresses = []
    for name in ("one", "two"):
        vm = await fork(vm_factory, name, nics=(Nic(), Nic(name="other", link="user")))
        addresses += [await vm.run(f"cat /sys/class/net/eth{number}/address") for number in (0, 1)]
        await vm.run("ip link set eth1 up; ip addr add 10.0.2.15/24 dev eth1; ping -c 1 -W 10 10.0.2.2")
    assert len(set(addresses)) == 4
    card = vm.spec.components["nic"].component
    assert isinstance(card, VirtioNic)
    assert addresses[2] == mac_address(card.interface_id)


async def test_a_fork_migrates_with_its_card(vm_factory: VmFactory) -> None:
    vm = await fork(vm_factory, "vm", nics=(Nic(),), **MICRO)
    up = "modprobe virtio_net; until ip link set eth0 up 2>&-; do usleep 50000; done; ip addr add 10.0.2.15/24 dev eth0"
    await vm.run(f"{up}; ping -c 1 -W 10 10.0.2.2")
    vm = await Migrate().perform(vm_factory, vm)
    assert "1 packets received" in await vm.run("ping -c 1 -W 10 10.0.2.2")


async def test_phases_tell_how_long_the_guest_took_to_find_them(vm_factory: VmFactory, tmp_path: Path) -> None:
    vm = await fork(vm_factory, "vm", DataDisk(name="data", image=image(tmp_path / "i", "x")), **MICRO)
    assert "devices" in vm.phases.took_s
    assert "devices" not in (await fork(vm_factory, "plain", **MICRO)).phases.took_s


async def test_an_image_that_is_not_there_is_named(vm_factory: VmFactory, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="nowhere"):
        await vm_factory.start("vm", disks=(DataDisk(name="data", image=tmp_path / "nowhere"),), **MICRO)
    disk = DataDisk(name="data", image=tmp_path / "nowhere", in_memory=True)
    with pytest.raises(ArtifactMissing, match="nowhere"):
        await vm_factory.start("vm", disks=(disk,), **MICRO)


async def test_a_link_that_is_not_there_is_named_at_once(vm_factory: VmFactory) -> None:
    await fork(vm_factory, "known", **MICRO)
    with pytest.raises(ApiError, match="there is no link 'vnic0' on this host; a link is 'user'") as caught:
        await vm_factory.start("vm", nics=(Nic(link="vnic0"),), **MICRO)
    assert (caught.value.status, caught.value.vm) == (400, "vm")
    listed = await vm_factory.agent.list_vms()  # those of other tests, too
    assert [vm.name for vm in listed if vm.group == vm_factory.group] == ["known"]


@pytest.mark.slow
async def test_a_disk_before_the_boot_disk_boots(vm_factory: VmFactory, tmp_path: Path) -> None:
    """It would be the second disk of a fork, and is the first of a guest that boots."""
    disk = DataDisk(name="data", image=image(tmp_path / "image", "image!"), pci_slot=3)
    assert (await vm_factory.start("vm", disks=(disk,), **ALPINE)).boot_kind == "cold"


def virtio(slot: int, *, function: int = 0, backend: str = "b") -> VirtioDiskComponent:
    path = PciPath(bus=0, device=slot, function=function)
    return VirtioDiskComponent(VirtioDisk(backend_id=backend, pci_path=path))


def file(path: str) -> FileStorageBackendComponent:
    return FileStorageBackendComponent(FileStorageBackend(path=path, readonly=False, block_size=512))


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (
            {"panic": QemuPvpanicComponent(QemuPvpanic(enable_isa=True))},
            "'panic': a fork cannot be given a QemuPvpanic",
        ),
        ({"disk": virtio(9)}, "'disk' names backend 'b'"),
        (
            {"disk": virtio(9), "other": virtio(9, function=1, backend="c"), "b": file("/b"), "c": file("/c")},
            "'disk': a fork can be given devices in free slots of PCI bus 0 only",
        ),
    ],
    ids=["no disk", "a disk without a backend", "two in one slot"],
)
async def test_what_cannot_be_plugged_in_answers_400(
    vm_factory: VmFactory, components: dict[str, Component], message: str
) -> None:
    vm = await vm_factory.create("vm", boot="warm", **MICRO)
    vm.spec = msgspec.structs.replace(vm.spec, components=vm.spec.components | components)
    with pytest.raises(ApiError, match=message) as caught:
        await vm.ensure()
    assert caught.value.status == 400


async def test_a_disk_that_qemu_cannot_open_fails_the_vm_with_its_reason(vm_factory: VmFactory, tmp_path: Path) -> None:
    vm = await vm_factory.create("vm", boot="warm", **MICRO)
    added = {"b": file(str(tmp_path / "gone.qcow2")), "disk": virtio(9)}
    vm.spec = msgspec.structs.replace(vm.spec, components=vm.spec.components | added)
    with pytest.raises(ApiError, match=r"gone\.qcow2"):
        await vm.ensure()


async def until(vm: TestVm, driver: str, condition: str) -> None:
    """Load a driver, and wait until it has found its devices."""
    await vm.run(f"modprobe {driver}; until {condition} 2>/dev/null; do sleep 0.05; done", timeout_s=60)


def serial_number(vm: TestVm, name: str) -> tuple[int, ...]:
    disk = vm.spec.components[name].component
    assert isinstance(disk, NvmeDisk)
    return disk.serial_number


async def test_nvme_disks_whose_names_begin_alike_have_serial_numbers_of_their_own(vm_factory: VmFactory) -> None:
    names = ("tenant-database-volume-1", "tenant-database-volume-2")
    disks = (DataDisk(name=name, size_mib=8 + number, interface="nvme") for number, name in enumerate(names))
    vm = await fork(vm_factory, "vm", *disks, **MICRO)
    await until(vm, "nvme", "[ $(ls -d /sys/block/nvme* | wc -l) = 2 ]")
    assert sorted((await vm.run("cat /sys/block/nvme*/size")).split()) == [str(8 * 2048), str(9 * 2048)]
    serials = {text.strip() for text in (await vm.run("cat /sys/class/nvme/*/serial")).splitlines()}
    assert serials == {bytes(serial_number(vm, name)).rstrip(b"\0 ").decode() for name in names}
    assert len(serials) == 2


@pytest.mark.slow
async def test_chosen_slots_and_default_ones_fit_on_one_bus(vm_factory: VmFactory) -> None:
    disks = [DataDisk(name=f"d{number}", size_mib=1, pci_slot=16 if number == 7 else None) for number in range(14)]
    vm = await fork(vm_factory, "vm", *disks, nics=(Nic(), Nic(name="other", pci_slot=5)), **MICRO)
    await until(vm, "virtio_blk", "[ $(ls -d /sys/block/vd* | wc -l) = 14 ]")
    await until(vm, "virtio_net", "[ $(ls -d /sys/class/net/eth* | wc -l) = 2 ]")


async def test_a_data_disk_in_the_place_of_the_boot_disk_does_not_displace_it(vm_factory: VmFactory) -> None:
    vm = await vm_factory.start(disks=(DataDisk(name="a", size_mib=8, pci_slot=4),), **ALPINE)
    assert await vm.run("cat /sys/block/vdb/size") == str(8 * 2048)
