"""What a test may want of a VM, and what is said of the impossible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_propolis.errors import ConfigError
from pytest_propolis.settings import Settings
from pytest_propolis.vm.config import DataDisk, Nic, VmConfig


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
        ({"boot_order": ("boot-disk", "other")}, "VM 'vm': boot_order names 'other', which is no disk of this VM"),
        (
            {"disks": (DataDisk(name="a", size_mib=1), DataDisk(name="a", size_mib=1))},
            "VM 'vm': two disks are named 'a'",
        ),
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
