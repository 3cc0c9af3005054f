"""What a test may want of a VM, and what is said of the impossible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_propolis.errors import ConfigError
from pytest_propolis.settings import Settings
from pytest_propolis.vm.config import DataDisk, VmConfig


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
        ({"name": "a"}, "give either size_mib or image"),
        ({"name": "a", "size_mib": 1, "image": Path("x")}, "give either size_mib or image"),
        ({"name": "a", "size_mib": 0}, "size_mib is 0"),
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
