"""The configuration of a VM, and the errors of invalid ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_propolis.errors import ConfigError
from pytest_propolis.settings import Settings
from pytest_propolis.vm.config import DataDisk, Nic, VmConfig
from pytest_propolis.vm.factory import VmFactory
from pytest_propolis.vm.instance_spec.builder import AttachedDisk, disk_components, instance_spec, with_failure_injector


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": ""}, "'' cannot be the name of a VM"),
        ({"name": "../up"}, "'../up' cannot be the name of a VM"),
        ({"name": "a b"}, "'a b' cannot be the name of a VM"),
        ({"name": "x" * 64}, "cannot be the name of a VM"),
        ({"cpus": 0}, "VM 'vm': cpus is 0"),
        ({"cpus": 65}, "VM 'vm': cpus is 65"),
        ({"memory_mib": 0}, "VM 'vm': memory_mib is 0"),
        ({"memory_mib": -512}, "VM 'vm': memory_mib is -512"),
        ({"disk_interface": "ide"}, "VM 'vm': disk_interface is 'ide'"),
        ({"boot_order": ("boot-disk", "other")}, "VM 'vm': boot_order names 'other', not a disk of this VM"),
        (
            {"disks": (DataDisk(name="a", size_mib=1), DataDisk(name="a", size_mib=1))},
            "VM 'vm': two disks are named 'a'",
        ),
        (
            {"disks": (DataDisk(name="a", size_mib=1, pci_slot=7),), "nics": (Nic(pci_slot=7),)},
            "pci_slot 7 of 'nic' is taken by 'a'",
        ),
        (
            {"disks": (DataDisk(name="a", size_mib=1, pci_slot=2),), "display": True},
            "pci_slot 2 of 'a' is taken by 'the display'",
        ),
        ({"nics": tuple(Nic(name=f"n{number}") for number in range(31))}, "no PCI slot is free for 'n30'"),
        ({"nics": (Nic(), Nic())}, "VM 'vm': two devices are named 'nic'"),
        ({"nics": (Nic(name="a"),), "disks": (DataDisk(name="a", size_mib=1),)}, "VM 'vm': two devices are named 'a'"),
    ],
)
def test_an_impossible_value_is_refused_by_name_and_with_a_hint(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VmConfig(**changes)
    assert complaint in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "boot-disk", "size_mib": 1}, "'boot-disk' cannot be its name"),
        ({"name": "a/b", "size_mib": 1}, "'a/b' cannot be its name"),
        ({"name": "a"}, "give one of size_mib, image and contents"),
        ({"name": "a", "size_mib": 1, "image": Path("x")}, "give one of size_mib, image and contents"),
        ({"name": "a", "image": Path("x"), "contents": b""}, "give one of size_mib, image and contents"),
        ({"name": "a", "size_mib": 0}, "size_mib is 0"),
        ({"name": "a", "contents": b""}, "contents are 0 bytes"),
        ({"name": "a", "contents": b"x" * 513}, "contents are 513 bytes"),
        ({"name": "a", "size_mib": 1, "block_size": 1024}, "block_size is 1024"),
        ({"name": "a", "size_mib": 1, "in_memory": True, "block_size": 4096}, "block_size is 4096"),
        ({"name": "a", "image": Path("x"), "image_format": "qcow2", "in_memory": True}, "a qcow2 image cannot be kept"),
        ({"name": "a", "size_mib": 1, "pci_slot": 1}, "pci_slot is 1"),
    ],
)
def test_an_impossible_disk_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataDisk(**changes)
    assert complaint in caught.value.message


INTERNAL_KEYS = ("boot-disk", "boot-settings", "migration-failure", "com1", "com2", "com3", "com4", "a-backend")


@pytest.mark.parametrize("name", INTERNAL_KEYS)
@pytest.mark.parametrize("device", [lambda name: DataDisk(name=name, size_mib=1), lambda name: Nic(name=name)])
def test_no_device_has_the_key_of_another_component(device: Callable[[str], object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' cannot be its name") as caught:
        device(name)
    assert caught.value.hint


def test_every_key_that_a_spec_has_beside_a_test_s_devices_is_reserved() -> None:
    disks = (AttachedDisk(name="data", contents=b"", interface="virtio", pci_slot=5),)
    spec = instance_spec(cpus=1, memory_mib=64, disks=disks, boot_order=("data",), nics=(Nic(pci_slot=16),))
    spec = with_failure_injector(spec, exports=1, imports=None)
    for key in spec.components.keys() - {"data", "nic"}:
        with pytest.raises(ConfigError, match="cannot be its name"):
            Nic(name=key)


def test_nvme_disks_whose_names_begin_alike_have_different_serial_numbers() -> None:
    names = ("tenant-database-volume-1", "tenant-database-volume-2", "tenant-database-volu")
    disks = [AttachedDisk(name=name, contents=b"", interface="nvme", pci_slot=4) for name in names]
    devices: list[Any] = [disk_components(disk)[disk.name].component for disk in disks]
    serials = [device.serial_number for device in devices]
    assert len(set(serials)) == 3
    assert bytes(serials[2]) == names[2].encode()


def slots(*disks: int | None, nics: Sequence[int | None] = (), boot_disk: bool = False, display: bool = False) -> Any:
    config = VmConfig(
        display=display,
        disks=tuple(DataDisk(name=f"d{number}", size_mib=1, pci_slot=slot) for number, slot in enumerate(disks)),
        nics=tuple(Nic(name=f"n{number}", pci_slot=slot) for number, slot in enumerate(nics)),
    ).with_slots(has_boot_disk=boot_disk)
    boot = [config.boot_disk_slot] if boot_disk else []
    return [*boot, *(disk.pci_slot for disk in config.disks)], [nic.pci_slot for nic in config.nics]


def test_a_device_without_a_slot_gets_the_next_free_one() -> None:
    assert slots(None, None) == ([4, 5], [])
    assert slots(5, None, None) == ([5, 4, 6], [])
    assert slots(None, 4) == ([5, 4], [])
    assert slots(16, nics=[None]) == ([16], [17])
    assert slots(*[None] * 13, nics=[None]) == ([*range(4, 17)], [17])
    assert slots(nics=[None] * 18) == ([], [*range(16, 32), 15, 14])
    assert slots(*[None] * 30) == ([*range(4, 32), 3, 2], [])


def test_the_boot_disk_stays_before_the_disks_that_leave_it_a_place() -> None:
    assert slots(None, boot_disk=True) == ([4, 5], [])
    assert slots(4, None, boot_disk=True) == ([3, 4, 5], [])
    assert slots(4, 3, boot_disk=True, display=True) == ([5, 4, 3], [])


def test_a_bus_that_the_boot_disk_fills_is_refused() -> None:
    with pytest.raises(ConfigError, match="no PCI slot is free for 'd29'"):
        slots(*[None] * 30, boot_disk=True)


def test_what_is_not_given_comes_from_the_settings() -> None:
    settings = Settings(guest="micro", cpus=3, memory_mib=256, boot_timeout=9.0)
    complete = VmConfig().completed(settings)
    assert (complete.guest, complete.cpus, complete.memory_mib, complete.boot_timeout_s) == ("micro", 3, 256, 9.0)


def test_what_is_given_stays() -> None:
    config = VmConfig(guest="alpine", cpus=1, memory_mib=128, boot_timeout_s=1.0)
    complete = config.completed(Settings(guest="micro", cpus=3))
    assert (complete.guest, complete.cpus, complete.memory_mib, complete.boot_timeout_s) == ("alpine", 1, 128, 1.0)


@pytest.mark.parametrize(
    ("changes", "complaint"), [({"name": "a b"}, "'a b' cannot be its name"), ({"pci_slot": 32}, "pci_slot is 32")]
)
def test_an_impossible_card_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match="network card") as caught:
        Nic(**changes)
    assert complaint in caught.value.message
    assert caught.value.hint


async def test_a_field_that_does_not_exist_is_refused_with_the_closest_one(vm_factory: VmFactory) -> None:
    with pytest.raises(ConfigError, match="there is no field 'memory_mb'") as caught:
        await vm_factory.start(memory_mb=512)  # type: ignore[call-arg]
    assert caught.value.hint == "did you mean 'memory_mib'?"
